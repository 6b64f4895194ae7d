"""Pico models and their exports. An export takes seconds, so all tests share these and do not change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from calm_graph.augmenters.onnx_export import export_augmenter
from tests.model.pico import Zoo

LAYERS = (0, 1)
_TWO = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


class Exports:
    """Exports on demand, by name and precision."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo

    def folder(self, name: str, precision: str = "fp32") -> Path:
        folder = self.zoo.folder / f"{name}-{precision}"
        if not folder.exists():
            export_augmenter(
                name,
                layers=LAYERS,
                out=folder,
                precision=precision,
                traced=None if precision == "fp32" else self.folder(name),
                registry=self.zoo.registry,
                min_cosine=0.8 if precision == "int4" else None,  # four bits are few for sixteen channels
            )
        return folder


@pytest.fixture(scope="session")
def onnx_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("onnx_zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    # Grouped queries with biases and the anchor's tokenizer; a sliding window of 4 with another tokenizer.
    zoo.add(
        "same", "qwen2", tokenizer="bytes", seed=2, hidden_size=24, **_TWO | {"layer_types": ["full_attention"] * 2}
    )
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3, **_TWO)
    zoo.add("reader", "bert", tokenizer="words", seed=4, num_hidden_layers=2)
    zoo.add("eye", "vit", seed=5, num_hidden_layers=2)
    return zoo


@pytest.fixture(scope="session")
def onnx_exports(onnx_zoo: Zoo) -> Exports:
    return Exports(onnx_zoo)
