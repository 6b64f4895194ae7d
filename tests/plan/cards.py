"""Cards with all facts, for plans without model files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from registry import ModelCard, Registry
from registry.card import OnnxExport


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


def exported(origin: str, layers: Iterable[int], *, reading: Literal["prompt", "stream"] = "stream") -> OnnxExport:
    layers = tuple(layers)
    return OnnxExport(
        origin=origin,
        layers=layers,
        reading=reading,
        precision="fp32",
        opset=20,
        files={},
        size_bytes=1,
        replaces_bytes=1,
        cosine=dict.fromkeys(layers, 1.0),
        relative_error=dict.fromkeys(layers, 0.0),
    )


def small_registry() -> Registry:
    return Registry(
        [
            card("anchor", 22, 96, 6),
            card("prices", 12, 64),
            card("code", 24, 128, 8),
            card("words", 8, 48),
            card("encoder", 6, 32, causal=False, architecture="bert"),
            card("eyes", 6, 32, causal=False, modality="image", architecture="vit"),
            card("exported", 12, 64, runtime="onnx", onnx=exported("elsewhere", range(12))),
            card("prices-onnx-int8", 12, 64, runtime="onnx", onnx=exported("prices", (3, 7, 11))),
            card("encoder-onnx", 6, 32, causal=False, runtime="onnx", onnx=exported("encoder", (5,), reading="prompt")),
            card("code-onnx-fp32", 24, 128, 8, runtime="onnx", onnx=exported("code", (3,), reading="prompt")),
            card("code-onnx-int8", 24, 128, 8, runtime="onnx", onnx=exported("code", (3,))),
        ]
    )
