"""SmolLM2 (Hugging Face, arXiv 2502.02737): small English models, good anchors."""

from __future__ import annotations

from registry.card import ModelCard


def _cards(
    size: str,
    *,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_key_value_heads: int,
    intermediate_size: int,
    num_parameters: int,
) -> tuple[ModelCard, ModelCard]:
    def card(suffix: str, *tags: str) -> ModelCard:
        return ModelCard(
            name=f"smollm2-{size.lower()}{suffix.lower()}",
            source=f"hub:HuggingFaceTB/SmolLM2-{size}{suffix}",
            architecture="llama",
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=64,
            intermediate_size=intermediate_size,
            num_parameters=num_parameters,
            vocab_size=49_152,
            context_length=8_192,
            tokenizer="smollm2",
            causal=True,
            tags=frozenset({"anchor", "general", "english", *tags}),
            licence="apache-2.0",
            description=f"SmolLM2 {size}, English{', follows instructions' if tags else ', base model'}.",
        )

    return card(""), card("-Instruct", "chat")


CARDS = (
    *_cards(
        "135M",
        num_layers=30,
        hidden_size=576,
        num_heads=9,
        num_key_value_heads=3,
        intermediate_size=1_536,
        num_parameters=134_515_008,
    ),
    *_cards(
        "360M",
        num_layers=32,
        hidden_size=960,
        num_heads=15,
        num_key_value_heads=5,
        intermediate_size=2_560,
        num_parameters=361_821_120,
    ),
    *_cards(
        "1.7B",
        num_layers=24,
        hidden_size=2_048,
        num_heads=32,
        num_key_value_heads=32,
        intermediate_size=8_192,
        num_parameters=1_711_376_384,
    ),
)
