"""Gemma 3 (Google, arXiv 2503.19786): 140+ languages, so good augmenters for languages that an anchor lacks.

The 4B, 12B and 27B models also read images; only their text model is used, and the facts are those of it.
"""

from __future__ import annotations

from registry.card import ModelCard


def _cards(
    size: str,
    *,
    base_suffix: str,
    num_layers: int,
    hidden_size: int,
    num_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    intermediate_size: int,
    num_parameters: int,
    vocab_size: int,
    context_length: int,
) -> tuple[ModelCard, ModelCard]:
    def card(name: str, hub_suffix: str, *tags: str) -> ModelCard:
        return ModelCard(
            name=name,
            source=f"hub:google/gemma-3-{size}{hub_suffix}",
            architecture="gemma3_text",
            num_layers=num_layers,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size,
            num_parameters=num_parameters,
            vocab_size=vocab_size,
            context_length=context_length,
            tokenizer="gemma3",
            causal=True,
            tags=frozenset({"general", "multilingual", "low-resource", *tags}),
            licence="gemma",
            description=f"Gemma 3 {size}, text model, {'follows instructions' if tags else 'base model'}.",
        )

    return card(f"gemma3-{size}", base_suffix), card(f"gemma3-{size}-it", "-it", "chat")


CARDS = (
    *_cards(
        "270m",
        base_suffix="",
        num_layers=18,
        hidden_size=640,
        num_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2_048,
        num_parameters=268_098_176,
        vocab_size=262_144,
        context_length=32_768,
    ),
    *_cards(
        "1b",
        base_suffix="-pt",
        num_layers=26,
        hidden_size=1_152,
        num_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=6_912,
        num_parameters=999_885_952,
        vocab_size=262_144,
        context_length=32_768,
    ),
    *_cards(
        "4b",
        base_suffix="-pt",
        num_layers=34,
        hidden_size=2_560,
        num_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        intermediate_size=10_240,
        num_parameters=3_880_263_168,
        vocab_size=262_208,
        context_length=131_072,
    ),
    *_cards(
        "12b",
        base_suffix="-pt",
        num_layers=48,
        hidden_size=3_840,
        num_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        intermediate_size=15_360,
        num_parameters=11_766_034_176,
        vocab_size=262_208,
        context_length=131_072,
    ),
    *_cards(
        "27b",
        base_suffix="-pt",
        num_layers=62,
        hidden_size=5_376,
        num_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        intermediate_size=21_504,
        num_parameters=27_009_346_304,
        vocab_size=262_208,
        context_length=131_072,
    ),
)
