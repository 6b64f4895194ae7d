"""Rows of Hugging Face data sets, as objects and by name."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from calm_graph.errors import InputError
from tests.data.conftest import CHAT, CHATML, load

ROWS = [{"prompt": f"price {i}", "completion": f" {i}", "id": i} for i in range(7)]


def test_a_data_set_and_a_stream_are_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = load(ROWS, tokenizer).fingerprint()
    dataset = datasets.Dataset.from_list(ROWS)
    for data in (dataset, dataset.to_iterable_dataset(), datasets.IterableDataset.from_generator(lambda: iter(ROWS))):
        loaded = load(data, tokenizer)
        assert loaded.fingerprint() == expected
        assert loaded.where(6) == "data[6]"


def test_messages_and_named_columns(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    chats = datasets.Dataset.from_list([CHAT])
    assert load(chats, tokenizer).fingerprint() == load([CHAT], tokenizer).fingerprint()
    named = datasets.Dataset.from_list([{"conversation": CHAT["messages"], "messages": "other"}])
    loaded = load(named, tokenizer, columns={"messages": "conversation"})
    assert loaded.fingerprint() == load([CHAT], tokenizer).fingerprint()


def test_a_data_set_is_found_by_name(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for split in ("train", "test"):
        rows = ROWS if split == "train" else ROWS[:2]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load(f"hf:{tmp_path}", tokenizer)) == 7
    loaded = load(f"hf:{tmp_path}:test", tokenizer)
    assert (len(loaded), loaded.where(1)) == (2, f"hf:{tmp_path}:test[1]")
    with pytest.raises(InputError, match=rf"hf:{tmp_path}:dev: cannot be loaded \(ValueError: .*dev"):
        load(f"hf:{tmp_path}:dev", tokenizer)
    with pytest.raises(InputError, match="'hf:': has no name; hf:NAME or hf:NAME:SPLIT is needed"):
        load("hf:", tokenizer)
    with pytest.raises(InputError, match=r"hf:no/such-set: cannot be loaded \("):
        load("hf:no/such-set", tokenizer)


def test_a_data_set_of_other_columns_is_one_error(tokenizer: PreTrainedTokenizerFast) -> None:
    numbers = datasets.Dataset.from_list([{"prompt": 3, "completion": "x"}])
    with pytest.raises(InputError, match="data: the column 'prompt' holds int64, but text is needed"):
        load(numbers, tokenizer)
    named = datasets.Dataset.from_list([{"question": "a", "answer": "b"}])
    for data in (named, named.to_iterable_dataset()):
        with pytest.raises(
            InputError, match=r"data: got the columns question, answer, but a row is .*--columns prompt="
        ):
            load(data, tokenizer)
    with pytest.raises(InputError, match="data: got a DatasetDict with the splits 'train', 'test'; give one of them"):
        load(datasets.DatasetDict(train=numbers, test=numbers), tokenizer)
