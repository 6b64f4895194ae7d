"""Pico compositions that answer, with and without a chat template."""

from __future__ import annotations

import pytest

from calm_graph import Augmenter, every
from calm_graph.model.composed import ComposedModel
from tests.model.conftest import zoo as model_zoo
from tests.model.pico import Zoo

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> ComposedModel:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1, vocab_size=340)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, vocab_size=340, hidden_size=24, num_attention_heads=4)
    zoo.add("other.v1", "gemma3_text", tokenizer="spaces", seed=3)
    return zoo.compose(Augmenter("same", attach=every(2)), Augmenter("other.v1", attach=every(2)))


@pytest.fixture
def chatting(answering: ComposedModel, monkeypatch: pytest.MonkeyPatch) -> ComposedModel:
    monkeypatch.setattr(answering.tokenizer, "chat_template", CHATML)
    return answering


zoo = model_zoo
