"""Qwen2.5-Coder (Alibaba, arXiv 2409.12186): code models, from small augmenters to large ones.

`qwen2.5-coder-SIZE` is the instruction-tuned model, the one most people mean; base models end in `-base`.
"""

from __future__ import annotations

from registry.card import ModelCard


def _cards(
    size: str,
    *,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    intermediate_size: int,
    num_parameters: int,
    vocab_size: int,
    licence: str = "apache-2.0",
) -> tuple[ModelCard, ModelCard]:
    def card(suffix: str, hub_suffix: str, *tags: str) -> ModelCard:
        return ModelCard(
            name=f"qwen2.5-coder-{size.lower()}{suffix}",
            source=f"hub:Qwen/Qwen2.5-Coder-{size}{hub_suffix}",
            architecture="qwen2",
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            num_parameters=num_parameters,
            vocab_size=vocab_size,
            context_length=32_768,
            tokenizer="qwen2.5",
            causal=True,
            tags=frozenset({"code", *tags}),
            licence=licence,
            description=f"Qwen2.5-Coder {size}, {'follows instructions' if tags else 'base model'}.",
        )

    return card("", "-Instruct", "chat"), card("-base", "")


CARDS = (
    *_cards(
        "0.5B",
        num_layers=24,
        hidden_size=896,
        num_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=4_864,
        num_parameters=494_032_768,
        vocab_size=151_936,
    ),
    *_cards(
        "1.5B",
        num_layers=28,
        hidden_size=1_536,
        num_heads=12,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=8_960,
        num_parameters=1_543_714_304,
        vocab_size=151_936,
    ),
    *_cards(
        "3B",
        num_layers=36,
        hidden_size=2_048,
        num_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=11_008,
        num_parameters=3_085_938_688,
        vocab_size=151_936,
        licence="qwen-research",
    ),
    *_cards(
        "7B",
        num_layers=28,
        hidden_size=3_584,
        num_heads=28,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=18_944,
        num_parameters=7_615_616_512,
        vocab_size=152_064,
    ),
    *_cards(
        "14B",
        num_layers=48,
        hidden_size=5_120,
        num_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=13_824,
        num_parameters=14_770_033_664,
        vocab_size=152_064,
    ),
    *_cards(
        "32B",
        num_layers=64,
        hidden_size=5_120,
        num_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=27_648,
        num_parameters=32_763_876_352,
        vocab_size=152_064,
    ),
)
