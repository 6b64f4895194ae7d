"""Pico models for evaluation, and files of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from calm_graph import Augmenter, every
from calm_graph.model.composed import ComposedModel
from tests.model.pico import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1, vocab_size=340)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, vocab_size=340, hidden_size=24, num_attention_heads=4)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    return zoo


@pytest.fixture(scope="session")
def composed(zoo: Zoo) -> ComposedModel:
    return zoo.compose(Augmenter("other", attach=every(2)), Augmenter("same", attach=every(2)))


@pytest.fixture(scope="session")
def checkpoint(zoo: Zoo, composed: ComposedModel) -> Path:
    folder = zoo.folder / "checkpoint"
    composed.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of prepared data."""
    folder = os.environ.get("CALM_GRAPH_DATA")
    if not folder:
        pytest.skip("needs the prepared data (set CALM_GRAPH_DATA)")
    return Path(folder)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
