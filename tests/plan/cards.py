"""Cards with all facts, for plans without model files."""

from __future__ import annotations

from typing import Any

from registry import ModelCard, Registry


def card(name: str, num_layers: int = 12, hidden_size: int = 64, num_heads: int = 4, **changes: Any) -> ModelCard:
    facts: dict[str, Any] = {
        "name": name,
        "source": f"hub:example/{name}",
        "architecture": "llama",
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_key_value_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "intermediate_size": 4 * hidden_size,
        "num_parameters": 1_000_000,
        "vocab_size": 1000,
        "context_length": 512,
        "causal": True,
        "licence": "apache-2.0",
    }
    return ModelCard(**facts | changes)


def small_registry() -> Registry:
    return Registry(
        [
            card("anchor", 22, 96, 6),
            card("prices", 12, 64),
            card("code", 24, 128, 8),
            card("words", 8, 48),
            card("encoder", 6, 32, causal=False, architecture="bert"),
            card("eyes", 6, 32, causal=False, modality="image", architecture="vit"),
            card("exported", 12, 64, runtime="onnx"),
        ]
    )
