"""A pico composition and a task it can learn in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from calm_graph import Augmenter, every
from calm_graph.declare.settings import TrainSettings
from calm_graph.model.composed import ComposedModel
from tests.model.pico import Zoo

MakeModel = Callable[[], ComposedModel]

# The completion's lengths differ, so batches are padded.
ROWS: list[dict[str, Any]] = [
    {"prompt": f"price of {name} is", "completion": f" {number}" + " now" * (number % 4)}
    for number, name in enumerate(["apples", "pears", "lamps", "ropes", "nets", "hats", "cups", "keys", "pens"] * 3)
]
HELD_OUT = ROWS[:5]


@pytest.fixture(scope="session")
def train_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, hidden_size=24, num_attention_heads=4)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    return zoo


@pytest.fixture
def make_model(train_zoo: Zoo) -> MakeModel:
    def make() -> ComposedModel:
        return train_zoo.compose(
            Augmenter("same", attach=every(2)), Augmenter("other", attach=every(2), reading="prompt"), trained=False
        )

    return make


def quick(**changes: Any) -> TrainSettings:
    defaults: dict[str, Any] = {
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "eval_every_steps": 2,
        "checkpoint_every_steps": 2,
        "device": "cpu",
    }
    return TrainSettings(**{**defaults, **changes})
