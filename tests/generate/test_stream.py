"""Streaming: the pieces are the text, the text is what `generate` gives, and Ctrl-C keeps what was written."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from calm_graph.errors import InputError
from calm_graph.generate.sampling import Sampling
from calm_graph.generate.stream import stream_text
from calm_graph.model.composed import ComposedModel
from tests.model.pico import CONTEXT


def test_the_pieces_are_the_text_that_generate_gives(answering: ComposedModel) -> None:
    pieces: list[str] = []
    answer = stream_text(answering, "price of apples", sampling=Sampling(max_new_tokens=12), on_text=pieces.append)
    tokens = answering.tokenizer("price of apples", return_tensors="pt")
    expected = answering.generate(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], max_new_tokens=12, do_sample=False
    )[0, tokens["input_ids"].shape[1] :]
    assert answer.text == "".join(pieces) == answering.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.num_prompt_tokens == tokens["input_ids"].shape[1]
    assert answer.num_new_tokens == len(expected)
    assert answer.stopped == ("length" if len(expected) == 12 else "end")


def test_a_seed_repeats_a_draw_and_leaves_the_callers_random_numbers(answering: ComposedModel) -> None:
    def draw(seed: int | None) -> str:
        sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed)
        return stream_text(answering, "price", sampling=sampling).text

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = draw(1)
    assert torch.equal(torch.rand(3), expected)
    assert draw(1) == first
    assert len({draw(seed) for seed in range(5)}) > 1


def test_ctrl_c_returns_what_was_written(answering: ComposedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream_text(answering, "price", sampling=Sampling(max_new_tokens=8))
    calls = iter(range(100))
    original = answering.anchor.forward

    @functools.wraps(original)  # the engine asks what it takes
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(answering.anchor, "forward", interrupted)
    answer = stream_text(answering, "price", sampling=Sampling(max_new_tokens=8))
    assert answer.stopped == "interrupted"
    assert answer.num_new_tokens == 4
    assert answer.text
    assert whole.text.startswith(answer.text.rstrip("�"))
    monkeypatch.undo()
    assert stream_text(answering, "price", sampling=Sampling(max_new_tokens=8)).text == whole.text


def test_prompts_that_cannot_be_continued_are_named(answering: ComposedModel) -> None:
    with pytest.raises(InputError, match="prompt: got an empty text"):
        stream_text(answering, "")
    with pytest.raises(InputError, match=rf"prompt: got \d+ tokens, but the anchor's context is {CONTEXT}; shorten"):
        stream_text(answering, "now " * 400)


def test_an_answer_ends_with_the_context(answering: ComposedModel) -> None:
    long = "now"
    while (num_tokens := len(answering.tokenizer(long)["input_ids"])) < CONTEXT - 6:
        long += " now"
    answer = stream_text(answering, long, sampling=Sampling(max_new_tokens=50))
    assert 0 < answer.num_new_tokens <= CONTEXT - num_tokens


def test_impossible_sampling_is_named_all_at_once() -> None:
    with pytest.raises(InputError, match=r"max_new_tokens: got -1.*temperature: got -1.*top_p: got 2"):
        Sampling(max_new_tokens=-1, temperature=-1, top_p=2)
