"""The built-in cards, a file per family."""

from registry.cards import demo, gemma3, qwen2_5_coder, smollm2

BUILT_IN = (*demo.CARDS, *smollm2.CARDS, *gemma3.CARDS, *qwen2_5_coder.CARDS)
