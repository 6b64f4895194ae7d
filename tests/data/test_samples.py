"""Rows to batches: the three shapes, what is supervised, the order, and every mistake a row can have."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from calm_graph.data.order import BatchOrder
from calm_graph.data.samples import Dataset, collate, load_dataset
from calm_graph.errors import InputError
from tests.model.pico import make_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('must start with user') }}{% endif %}" + CHATML


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer("bytes")


def load(rows: Any, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Dataset:
    return load_dataset(rows, tokenizer, **{"max_length": None, **options})


def test_prompt_and_completion_are_tokenised_apart_and_only_the_completion_is_supervised() -> None:
    tokenizer = make_tokenizer("spaces")  # puts <s> before a text
    dataset = load([{"prompt": "price of", "completion": " apples", "id": 7}], tokenizer)
    (sample,) = dataset.samples
    prompt = tokenizer("price of")["input_ids"]
    completion = tokenizer(" apples", add_special_tokens=False)["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert sample.input_ids.tolist() == [*prompt, *completion, tokenizer.eos_token_id]
    assert (sample.prompt_length, sample.prompt_text, sample.completion_bytes) == (len(prompt), "price of", 7)
    labels = dataset.batch([0])["labels"][0].tolist()
    assert labels == [-100] * len(prompt) + sample.input_ids.tolist()[len(prompt) :]


def test_special_tokens_after_a_prompt_are_left_out() -> None:
    tokenizer = make_tokenizer("words")  # <s> $A </s>
    (sample,) = load([{"prompt": "price", "completion": "apples"}], tokenizer).samples
    assert sample.input_ids.tolist().count(tokenizer.eos_token_id) == 1
    assert sample.input_ids[0] == tokenizer.bos_token_id


def test_text_is_all_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = load([{"text": "price of apples"}], tokenizer)
    (sample,) = dataset.samples
    assert (sample.prompt_length, sample.prompt_text) == (0, "")
    assert dataset.batch([0])["labels"][0].tolist() == [-100, *sample.input_ids.tolist()[1:]]
    assert sample.num_supervised == len(sample.input_ids) - 1


def test_each_supervised_turn_is_a_sample_and_augmenters_read_plain_text(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "price?"},
        {"role": "assistant", "content": "3 apples"},
        {"role": "user", "content": "and pears?"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "14 pears"},
    ]
    first, second = load([{"messages": messages}], tokenizer).samples
    assert first.prompt_text == "be kind\nprice?"
    assert second.prompt_text == "be kind\nprice?\n3 apples\nand pears?\nno\nsure?"
    for sample, turn in ((first, 2), (second, 6)):
        rendered = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(sample.input_ids[: sample.prompt_length]) == rendered
        # The template's own end of turn closes the answer, once.
        assert tokenizer.decode(sample.input_ids[sample.prompt_length :]) == messages[turn]["content"] + "</s>"
        assert sample.completion_bytes == len((messages[turn]["content"] + "</s>").encode())


def test_a_template_without_an_end_of_turn_gets_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    row = {"messages": [{"role": "user", "content": "price?"}, {"role": "assistant", "content": "3"}]}
    (sample,) = load([row], tokenizer).samples
    assert tokenizer.decode(sample.input_ids) == "price?\n3</s>"


def test_collate_pads_on_the_right_and_hides_the_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = load([{"text": "a price of apples"}, {"prompt": "price", "completion": " 3"}], tokenizer)
    batch = collate(dataset.samples, pad_token_id=dataset.pad_token_id)
    lengths = [len(sample.input_ids) for sample in dataset.samples]
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    hidden = ~batch["attention_mask"]
    assert hidden.any()
    assert (batch["input_ids"][hidden] == tokenizer.pad_token_id).all()
    assert (batch["labels"][hidden] == -100).all()
    assert batch["prompt_lengths"].tolist() == [sample.prompt_length for sample in dataset.samples]
    assert batch["prompt_texts"] == ["", "price"]


@pytest.mark.parametrize("num_samples", [1, 7, 64, 1001])
def test_an_epoch_shows_every_sample_once_and_any_step_can_be_asked_for(num_samples: int) -> None:
    lengths = [5 + (index * 7919) % 50 for index in range(num_samples)]
    order = BatchOrder(lengths, batch_size=8, seed=3)
    steps = order.batches_per_epoch
    epochs = [[order.batch(step) for step in range(e * steps, (e + 1) * steps)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(index for batch in epoch for index in batch) == list(range(num_samples))
        assert all(len(batch) <= 8 for batch in epoch)
    assert num_samples < 9 or epochs[0] != epochs[1]
    late = BatchOrder(lengths, batch_size=8, seed=3)
    assert late.batch(2 * steps - 1) == epochs[1][-1]
    assert num_samples < 9 or BatchOrder(lengths, batch_size=8, seed=4).batch(0) != epochs[0][0]


def test_the_given_order_is_kept_in_every_epoch() -> None:
    order = BatchOrder([5, 1, 9, 2, 7], batch_size=2, seed=3, order="given")
    assert [order.batch(step) for step in range(6)] == 2 * [[0, 1], [2, 3], [4]]


def test_batches_hold_samples_of_similar_length() -> None:
    lengths = [1 + (index * 7919) % 100 for index in range(800)]
    order = BatchOrder(lengths, batch_size=8, seed=0)
    padded = sum(8 * max(lengths[i] for i in order.batch(step)) for step in range(order.batches_per_epoch))
    assert 1 - sum(lengths) / padded < 0.05


GOOD = {"prompt": "price", "completion": " 3"}
TURN = {"role": "user", "content": "price?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "price", "complete": "3"}, "got the keys prompt, complete, but a row is {"),
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


def test_all_wrong_rows_are_reported_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{'prompt': 1}\n" + "\n".join("{}" for _ in range(20)))
    with pytest.raises(InputError, match=r"21 unusable rows(.|\n)*:1: not JSON \((.|\n)*:2: got(.|\n)*and 13 more"):
        load(path, tokenizer)


def test_messages_need_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="the anchor has no chat template"):
        load([{"messages": [TURN, {"role": "assistant", "content": "3"}]}], tokenizer)


def test_a_missing_an_empty_and_a_binary_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; a JSONL file is needed"):
        load(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows; each row is"):
        load(tmp_path / "empty.jsonl", tokenizer)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load(tmp_path / "binary.jsonl", tokenizer)


LONG = {"prompt": "price", "completion": " now" * 30}


def test_long_rows_stop_are_skipped_or_are_cut(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [GOOD, LONG]
    with pytest.raises(InputError, match=r"data\[1\]: got \d+ tokens, but at most 20 are allowed .*1 of 2 samples"):
        load(rows, tokenizer, max_length=20)
    with caplog.at_level(logging.WARNING):
        skipped = load(rows, tokenizer, max_length=20, long_rows="skip")
        cut = load(rows, tokenizer, max_length=20, long_rows="cut")
    assert (len(skipped.samples), skipped.num_skipped, skipped.num_cut) == (1, 1, 0)
    assert (len(cut.samples), cut.num_skipped, cut.num_cut) == (2, 0, 1)
    assert len(cut.samples[1].input_ids) == 20
    assert 0 < cut.samples[1].completion_bytes < len(LONG["completion"])
    assert "1 samples skipped and 0 cut at 20 tokens" in caplog.text
    with pytest.raises(InputError, match="all 1 samples are longer than max_length=20"):
        load([LONG], tokenizer, max_length=20, long_rows="skip")


def test_a_text_of_one_token_leaves_nothing_to_predict(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"data\[0\]: its 1 tokens leave none to be predicted"):
        load([{"text": "a"}], tokenizer)
