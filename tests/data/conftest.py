"""A tokenizer, and loading with it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from tests.model.pico import make_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
GOOD = {"prompt": "price", "completion": " 3"}
TURN = {"role": "user", "content": "price?"}
CHAT = {"messages": [TURN, {"role": "assistant", "content": "3 apples"}]}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("bytes")


def load(rows: Any, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Dataset:
    return load_dataset(rows, tokenizer, **{"max_length": None, **options})
