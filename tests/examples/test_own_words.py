"""Rows that a chat model wrote itself."""

from __future__ import annotations

import pytest

from calm_graph.errors import InputError
from examples.own_words import PROMPT, own_words

pytestmark = pytest.mark.realmodels


def test_instructions_and_their_answers_are_drawn() -> None:
    first, second = (list(own_words("smollm2-135m-instruct", count=3, max_tokens=24, batch_size=8)) for _ in range(2))
    assert first == second and len({row["prompt"] for row in first}) == 3
    start, end = PROMPT.split("{instruction}")
    for row in first:
        assert row["prompt"].startswith(start) and row["prompt"].endswith(end) and row["completion"].strip()
        assert "<|im_" not in row["prompt"] + row["completion"]


def test_a_model_that_does_not_chat_is_refused() -> None:
    with pytest.raises(InputError, match="which has no chat template"):
        next(own_words("gemma3-270m", count=1, max_tokens=8))
