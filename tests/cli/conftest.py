"""A folder as a user has it: cards, a declaration, data; and the commands run on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry import registry
from tests.model.pico import Zoo
from tests.train.conftest import ROWS

DECLARATION = """
from calm_graph import Augmenter, Composition, every

composition = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])
"""


@pytest.fixture(scope="session")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cards for pico models that need no other name of the registry."""
    folder = tmp_path_factory.mktemp("cards")
    zoo = Zoo(folder / "models")
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1, vocab_size=340)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, vocab_size=340, hidden_size=24, num_attention_heads=4)
    for name in ("anchor", "same"):
        card = {"name": name, "source": f"folder:{zoo.folder / name}"}
        (folder / f"{name}.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def workplace(tmp_path: Path, cards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Commands add --registry folders to the default registry, which other tests must not see.
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    (tmp_path / "prices.py").write_text(DECLARATION)
    for name, rows in (("train.jsonl", ROWS), ("dev.jsonl", ROWS[:5])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path
