"""Rows as users write them, and every mistake one can have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from calm_graph.data.rows import Place, Source, examples_of, shape_of
from calm_graph.errors import InputError
from tests.data.conftest import CHAT, CHATML, GOOD, TURN, load

STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('must start with user') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "price", "complete": "3"}, "got the keys prompt, complete, but no completion; a row is {"),
        ({"prompt": "price", "completion": None}, "got the keys prompt, but no completion; a row is {"),
        (
            {"prompt": "price", "completions": "3"},
            r"got the keys prompt, completions, but a row is .*; did you mean 'completion' by 'completions'\?",
        ),
        ({"text": "price", "prompts": 3}, r"got the keys .*; did you mean 'prompt' by 'prompts'\? Or say where they"),
        ({"promt": "price", "completion": "3"}, r"got the keys .*; did you mean 'prompt' by 'promt'\?"),
        ({"Text": "price"}, r"got the keys Text, .*; did you mean 'text' by 'Text'\?"),
        (GOOD | {"augmenter_input": {}}, r"got the keys .*; did you mean 'augmenter_inputs' by 'augmenter_input'\?"),
        (GOOD | {"augmenter_inputs": [1]}, r"augmenter_inputs: got \[1\], but {augmenter: {input: array}} is needed"),
        ({"text": "a \ud800"}, r"text: got half a character \('\\ud800'\), but Unicode text is needed"),
        (
            {"messages": [TURN, {"role": "assistant", "content": "3", "wieght": 0}]},
            r"messages\[1\]: got the keys role, content, wieght; did you mean 'weight' by 'wieght'\?",
        ),
        ({"prompt": "price", "text": "3"}, "got the keys prompt, text, but a row is {"),
        ({}, r"got the keys \(none\), but a row is {"),
        (["price"], r"got \['price'\], but a row is {"),
        ({"prompt": 3, "completion": "x"}, "prompt: got 3, but a text is needed"),
        (
            {"prompt": "", "completion": "x"},
            "prompt: got '', but a text is needed; a row without a prompt is {\"text\"}",
        ),
        ({"prompt": "x", "completion": ""}, "completion: got '', but a text is needed"),
        ({"text": ""}, "text: got '', but a text is needed"),
        ({"messages": "hi"}, "messages: got 'hi', but a list is needed"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            r"messages\[0\].role: got 'bot', but allowed are system, user",
        ),
        ({"messages": ["x"]}, r"messages\[0\].role: got 'x', but allowed are"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: got None, but a text is needed"),
        ({"messages": [TURN]}, "messages: no assistant message to train on"),
        ({"messages": [TURN, {"role": "assistant", "content": ""}]}, r"messages\[1\].content: got '', but a text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r"messages\[0\]: an assistant message has no prompt"),
        (
            {"messages": [{"role": "system", "content": "x"}, TURN, {"role": "assistant", "content": "3"}]},
            "messages: the anchor's chat template refuses them: must start with user",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_place(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, row: object, message: str
) -> None:
    tokenizer.chat_template = STRICT
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"1 unusable row\n  {path}:3: {message}"):
        load(path, tokenizer)
    if isinstance(row, dict):
        with pytest.raises(InputError, match=rf"data\[1\]: {message}"):
            load([GOOD, row], tokenizer)


def test_all_wrong_rows_are_reported_at_once_and_each_kind_of_mistake_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{'prompt': 1}\n" + "{}\n" * 20 + "".join(f'{{"text": {i}}}\n' for i in range(9)))
    with pytest.raises(InputError) as caught:
        load(path, tokenizer)
    first, *lines = str(caught.value).replace(str(path), "train.jsonl").splitlines()
    assert first == "train.jsonl: 30 unusable rows"
    assert lines[0].startswith("  train.jsonl:1: not JSON (")
    assert lines[1].startswith("  train.jsonl:2 and 19 more: got the keys (none), but a row is")
    assert lines[2:-1] == [f"  train.jsonl:{22 + i}: text: got {i}, but a text is needed" for i in range(6)]
    assert lines[-1] == "  and other problems of 3 more"


def test_rows_under_other_names_say_what_to_do(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        InputError, match=r"data\[0\] and 3 more: got the keys q, a, but .*; say where they are: columns="
    ):
        load([{"q": "a", "a": "b"}] * 4, tokenizer)


def test_messages_need_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="the anchor has no chat template"):
        load([CHAT], tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        GOOD | {"id": 7, "source": "x"},
        {"text": "price", "prompt_id": "a", "context": "b"},
        # Tables have a column for each key that some row has.
        GOOD | {"text": None, "messages": None, "augmenter_inputs": None},
    ],
)
def test_other_keys_are_left_alone(tokenizer: PreTrainedTokenizerFast, row: dict[str, object]) -> None:
    (example,) = examples_of(row, Place(Source("data", "rows"), 0), tokenizer)
    assert example.prompt + example.completion in ("price 3", "price")
    assert shape_of(row) in ("prompt, completion", "text")
