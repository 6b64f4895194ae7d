"""Shared models of the tests of composed models."""

from __future__ import annotations

import pytest
from hypothesis import settings

from calm_graph import Augmenter, every
from registry import ModelCard
from tests.model.pico import Zoo

# No deadline: on a busy machine the first example, which warms up, is late. Fewer examples: each is a whole text.
settings.register_profile("texts", deadline=None, max_examples=40)
settings.load_profile("texts")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, hidden_size=24, num_attention_heads=4)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    zoo.add("reader", "bert", tokenizer="words", seed=4)
    zoo.add("eye", "vit", seed=5)
    zoo.add("window", "mistral", tokenizer="spaces", seed=6, sliding_window=5)
    zoo.add("alibi", "bloom", tokenizer="spaces", seed=7)
    zoo.add("second", "llama", tokenizer="spaces", seed=8)
    zoo.add("window-anchor", "mistral", tokenizer="bytes", seed=9, sliding_window=5)
    zoo.add("anchor-with-spaces", "llama", tokenizer="spaces", seed=10)
    zoo.add("dropping", "gpt2", tokenizer="bytes", seed=11, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    inner = zoo.compose(Augmenter("second", attach=every(2)), anchor="other", name="inner-source")
    inner.save_pretrained(zoo.folder / "saved")
    zoo.registry.add(ModelCard(name="saved", source=f"folder:{zoo.folder / 'saved'}"))
    return zoo
