"""Rows that a chat model wrote itself."""

from __future__ import annotations

import pytest

from calm_graph.errors import InputError
from examples.own_words import PROMPT, own_words

pytestmark = pytest.mark.realmodels


def test_instructions_and_their_answers_are_drawn() -> None:
    rows = list(own_words("smollm2-135m-instruct", count=1, max_tokens=24, batch_size=4))
    assert len(rows) == 1
    start, end = PROMPT.split("{instruction}")
    for row in rows:
        assert row["prompt"].startswith(start) and row["prompt"].endswith(end) and row["completion"].strip()
        assert "<|im_" not in row["prompt"] + row["completion"]


def test_no_room_for_an_instruction_is_refused() -> None:
    with pytest.raises(InputError, match="max_tokens: got 1, but none of 2 instructions ended"):
        next(own_words("smollm2-135m-instruct", count=1, max_tokens=1, batch_size=2))


def test_a_model_that_does_not_chat_is_refused() -> None:
    with pytest.raises(InputError, match="which has no chat template"):
        next(own_words("gemma3-270m", count=1, max_tokens=8))
