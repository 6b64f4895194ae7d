"""Samples in columns, and the batches made of them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from calm_graph.data.samples import Dataset, collate
from calm_graph.data.storage import open_dataset, save_dataset
from calm_graph.errors import InputError
from tests.data.conftest import load


def test_collate_pads_on_the_right_and_hides_the_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = load([{"text": "a price of apples"}, {"prompt": "price", "completion": " 3"}], tokenizer)
    batch = collate(list(dataset), pad_token_id=dataset.pad_token_id)
    lengths = [len(sample.input_ids) for sample in dataset]
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    hidden = ~batch["attention_mask"]
    assert hidden.any()
    assert (batch["input_ids"][hidden] == tokenizer.pad_token_id).all()
    assert (batch["labels"][hidden] == -100).all()
    assert batch["prompt_lengths"].tolist() == [sample.prompt_length for sample in dataset]
    assert batch["prompt_texts"] == ["", "price"]


def rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "prompt": "preis – " * (i % 3 + 1),
            "completion": "now" * (i % 4 + 1),
            "augmenter_inputs": {"eye": {"pixels": np.full((2, 3), i, dtype=np.float32)}},
        }
        for i in range(count)
    ]


@pytest.fixture
def dataset(tokenizer: PreTrainedTokenizerFast) -> Dataset:
    return load(rows(20), tokenizer)


def test_columns_hold_what_the_samples_held(dataset: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    samples = list(dataset)
    assert [sample.prompt_text for sample in samples] == [row["prompt"] for row in rows(20)]
    assert dataset.lengths.tolist() == [len(sample.input_ids) for sample in samples]
    assert [tokenizer.decode(sample.input_ids[sample.prompt_length :]) for sample in samples] == [
        f"{row['completion']}</s>" for row in rows(20)
    ]
    assert [dataset.where(index) for index in (0, 19)] == ["data[0]", "data[19]"]
    batch = dataset.batch([3, 7])
    assert batch["augmenter_inputs"]["eye"]["pixels"].mean(dim=(1, 2)).tolist() == [3, 7]
    for index in (-1, 20):
        with pytest.raises(IndexError, match=r"there are 0\.\.19"):
            dataset[index]


def test_supervised_tokens_are_counted_without_collating(dataset: Dataset) -> None:
    for indices in ([0], [5, 3, 17], list(range(20))):
        assert dataset.num_supervised(indices) == int((dataset.batch(indices)["labels"] != -100).sum())
    assert dataset.num_supervised([]) == 0


def test_a_data_set_travels_and_is_mapped_from_a_folder(dataset: Dataset, tmp_path: Path) -> None:
    save_dataset(dataset, tmp_path / "tokens")
    opened = open_dataset(tmp_path / "tokens")
    assert isinstance(opened.input_ids, np.memmap) and not opened.input_ids.flags.writeable
    for other in (copy.deepcopy(dataset), opened):
        assert other.fingerprint() == dataset.fingerprint()
        assert other.sources == dataset.sources
        for key, value in dataset.batch([4, 11]).items():
            assert str(other.batch([4, 11])[key]) == str(value)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_not_overwritten_and_a_damaged_one_is_named(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    save_dataset(dataset, folder)
    with pytest.raises(InputError, match="tokens: exists already"):
        save_dataset(dataset, folder)
    (folder / "offsets.npy").write_bytes((folder / "offsets.npy").read_bytes()[:-8])
    with pytest.raises(InputError, match="tokens: holds no data set that can be read"):
        open_dataset(folder)
    with pytest.raises(InputError, match="other: holds no data set"):
        open_dataset(tmp_path / "other")


@pytest.mark.parametrize("change", [{"prompt": "other"}, {"completion": "other"}, {"augmenter_inputs": {}}])
def test_the_fingerprint_sees_every_change(
    dataset: Dataset, tokenizer: PreTrainedTokenizerFast, change: dict[str, object]
) -> None:
    assert load(rows(20), tokenizer).fingerprint() == dataset.fingerprint()
    changed = rows(20)
    for row in changed if "augmenter_inputs" in change else changed[7:8]:
        row.update(change)
    assert load(changed, tokenizer).fingerprint() != dataset.fingerprint()
    assert load(rows(20)[::-1], tokenizer).fingerprint() != dataset.fingerprint()
