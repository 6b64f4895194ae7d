"""Pico compositions whose states are cached, and rows of ragged lengths."""

from __future__ import annotations

from typing import Any

import pytest

from calm_graph import Augmenter, Composition, every
from registry import ModelCard
from tests.model.pico import Zoo

WORDS = ["apples", "pears", "lamps", "ropes", "nets", "hats", "cups", "keys", "pens"]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"price of {name} is", "completion": f" {number} and {name}" + ", ok now" * (number % 4)}
    for number, name in enumerate(WORDS * 3)
] + [{"text": f"The {name} jump over the lazy dog; don't stop"} for name in WORDS[:3]]
HELD_OUT = [{"prompt": f"price of {name} was", "completion": " 3"} for name in WORDS[:5]]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, hidden_size=24, num_attention_heads=4)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    zoo.add("second", "llama", tokenizer="spaces", seed=4)
    inner = zoo.compose(Augmenter("second", attach=every(2)), anchor="other", name="inner")
    inner.save_pretrained(zoo.folder / "saved")
    zoo.registry.add(ModelCard(name="saved", source=f"folder:{zoo.folder / 'saved'}"))
    return zoo


def composed(*augmenters: Augmenter, name: str = "prices") -> Composition:
    return Composition(name=name, anchor="anchor", augmenters=augmenters)


SAME = Augmenter("same", attach=[{"augmenter_layer": 1, "anchor_layer": 1}, {"augmenter_layer": 3, "anchor_layer": 3}])
OTHER = Augmenter("other", attach=[{"augmenter_layer": 2, "anchor_layer": 2}], reading="prompt")
