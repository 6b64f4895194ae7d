"""Rows become samples: what is supervised, what is too long, and what a whole source may be refused for."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from calm_graph import progress
from calm_graph.data import load as load_module
from calm_graph.errors import InputError
from tests.data.conftest import CHAT, CHATML, GOOD, load
from tests.model.pico import make_tokenizer


def test_prompt_and_completion_are_tokenised_apart_and_only_the_completion_is_supervised() -> None:
    tokenizer = make_tokenizer("spaces")  # puts <s> before a text
    dataset = load([{"prompt": "price of", "completion": " apples", "id": 7}], tokenizer)
    (sample,) = dataset
    prompt = tokenizer("price of")["input_ids"]
    completion = tokenizer(" apples", add_special_tokens=False)["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert sample.input_ids.tolist() == [*prompt, *completion, tokenizer.eos_token_id]
    assert (sample.prompt_length, sample.prompt_text, sample.completion_bytes) == (len(prompt), "price of", 7)
    labels = dataset.batch([0])["labels"][0].tolist()
    assert labels == [-100] * len(prompt) + sample.input_ids.tolist()[len(prompt) :]


def test_special_tokens_after_a_prompt_are_left_out() -> None:
    tokenizer = make_tokenizer("words")  # <s> $A </s>
    (sample,) = load([{"prompt": "price", "completion": "apples"}], tokenizer)
    assert sample.input_ids.tolist().count(tokenizer.eos_token_id) == 1
    assert sample.input_ids[0] == tokenizer.bos_token_id


def test_text_is_all_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = load([{"text": "price of apples"}], tokenizer)
    (sample,) = dataset
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
    first, second = load([{"messages": messages}], tokenizer)
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
    (sample,) = load([row], tokenizer)
    assert tokenizer.decode(sample.input_ids) == "price?\n3</s>"


def test_a_missing_an_empty_and_a_binary_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.jsonl: no such file, folder of .jsonl or .parquet files, or glob"):
        load(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows; each row is"):
        load(tmp_path / "empty.jsonl", tokenizer)
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.jsonl:1: not UTF-8 text"):
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
    assert (len(skipped), skipped.num_skipped, skipped.num_cut) == (1, 1, 0)
    assert (len(cut), cut.num_skipped, cut.num_cut) == (2, 0, 1)
    assert len(cut[1].input_ids) == 20
    assert 0 < cut[1].completion_bytes < len(LONG["completion"])
    assert "data: 1 samples skipped and 0 cut at 20 tokens, the first is data[1]" in caplog.text
    with pytest.raises(InputError, match=r"data\[0\]: all 1 samples are longer than 20 tokens"):
        load([LONG], tokenizer, max_length=20, long_rows="skip")


def test_a_text_of_one_token_leaves_nothing_to_predict(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"data\[0\]: its 1 tokens leave none to be predicted"):
        load([{"text": "a"}], tokenizer)


def test_prompts_that_fill_the_context_are_counted_and_never_cut(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [GOOD, {"prompt": "price " * 10, "completion": "3"}, LONG]
    with pytest.raises(InputError, match=r"2 of 3 samples are too long; the prompts of 1 of them fill that alone"):
        load(rows, tokenizer, max_length=20)
    with caplog.at_level(logging.WARNING):
        dataset = load(rows, tokenizer, max_length=20, long_rows="cut")
    assert [dataset.where(index) for index in range(len(dataset))] == ["data[0]", "data[2]"]
    assert (dataset.num_skipped, dataset.num_cut) == (1, 1)
    assert "1 samples skipped and 1 cut at 20 tokens, the first is data[1]; the prompts of 1 of them" in caplog.text


def test_rows_of_several_shapes_are_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.chat_template = CHATML
    with caplog.at_level(logging.WARNING):
        assert len(load([GOOD] * 3, tokenizer)) == 3
        assert not caplog.text
        assert len(load([GOOD, {"text": "a"}, GOOD, CHAT], tokenizer)) == 4
    assert "data: rows of several shapes: 2 with prompt, completion (the first is data[0]); 1 with text" in caplog.text


def test_chunks_make_no_difference(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "price " * (i % 5 + 1), "completion": "now " * (i % 3 + 1)} for i in range(50)]
    whole = load(rows, tokenizer, max_length=16, long_rows="cut")
    monkeypatch.setattr(load_module, "ROWS_AT_ONCE", 7)
    pieces = load(iter(rows), tokenizer, max_length=16, long_rows="cut")
    assert pieces.fingerprint() == whole.fingerprint()
    assert [pieces.where(i) for i in range(50)] == [f"data[{i}]" for i in range(50)]
    assert pieces.num_cut == whole.num_cut > 0


def test_a_wrong_file_is_not_read_to_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    taken = []
    rows = (taken.append(i) or {"prompt": "x"} for i in range(100_000))
    with pytest.raises(InputError, match=r"data: at least \d+ unusable rows"):
        load(rows, tokenizer)
    assert len(taken) < 5_000


def test_rows_must_agree_on_augmenter_inputs_across_chunks(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "ROWS_AT_ONCE", 2)
    rows = [GOOD | {"augmenter_inputs": {"eye": {"pixels": np.zeros(size)}}} for size in (2, 2, 3)]
    with pytest.raises(InputError, match=r"data\[2\]: augmenter_inputs have the shapes .*\(3,\).*data\[0\] are"):
        load(rows, tokenizer)
    with pytest.raises(InputError, match=r"data\[0\]: augmenter_inputs.eye.pixels: got 'x', but an array is needed"):
        load([GOOD | {"augmenter_inputs": {"eye": {"pixels": "x"}}}], tokenizer)


def test_reading_much_is_shown_in_lines_where_there_is_no_terminal(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0)
    monkeypatch.setattr(load_module, "ROWS_AT_ONCE", 2)
    load([GOOD] * 5, tokenizer, show="none")
    assert capsys.readouterr().err == ""
    load([GOOD] * 5, tokenizer, show="plain")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"read data {n}/5 rows" for n in (2, 4, 5)]
