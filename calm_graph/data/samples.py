"""Tokenised samples in columns, and the batches made of them: token ids, labels, padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calm_graph.data.rows import Inputs, Place, Source
from calm_graph.model.stored import StoredStates

IGNORED = -100
"""The label of a position that is not trained on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenised sample.

    Args:
        input_ids: T int32, prompt and completion.
        prompt_length: How many of them are the prompt; 0 for a `{"text"}` row.
        prompt_text: What the augmenters read for the prompt.
        completion_bytes: UTF-8 bytes of the completion's text.
        place: The row it came from.
        augmenter_inputs: One sample's.
        told_ids: T int32, the same with the prompt as it is told; empty where that is not trained on.
        kept: Whether the anchor alone is the teacher of what is predicted.
    """

    input_ids: NDArray[np.int32]
    prompt_length: int
    prompt_text: str
    completion_bytes: int
    place: Place
    augmenter_inputs: Inputs
    told_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    kept: bool = False

    @property
    def num_supervised(self) -> int:
        """How many tokens are predicted; a first token has nothing before it to be predicted from."""
        return len(self.input_ids) - max(self.prompt_length, 1)


class Batch(TypedDict):
    """What the model is called with.

    input_ids, attention_mask (bool) and labels are B x T, padded on the right; prompt_lengths is B; prompt_texts has
    one text per sample; augmenter_inputs has tensors B x ... for each augmenter with inputs of its own. told_ids, B x
    T, are there when states are trained on, kept, bool B, where rows are, stored_states when states are cached,
    augmenter_scales, float B for each augmenter, when they are chosen by row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    prompt_lengths: Tensor
    prompt_texts: list[str]
    augmenter_inputs: dict[str, dict[str, Tensor]]
    told_ids: NotRequired[Tensor]
    kept: NotRequired[Tensor]
    stored_states: NotRequired[Mapping[str, StoredStates]]
    augmenter_scales: NotRequired[Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dataset:
    """Tokenised samples, each field of all of them in one array.

    That is cheap to send to other processes, to share between them and to map from a file, however many there are.
    `dataset[index]` is a view of one sample.

    Args:
        input_ids: int32, the tokens of all samples, one after the other.
        offsets: N + 1 int64; sample i has the tokens from `offsets[i]` to `offsets[i + 1]`.
        prompt_lengths: N int32.
        completion_bytes: N int32.
        texts: uint8, what the augmenters read as prompts, as UTF-8, one after the other.
        text_offsets: N + 1 int64.
        source_ids: N int32, which of `sources` a sample comes from.
        row_numbers: N int64, its row there.
        told_ids: int32, as input_ids with each prompt as it is told, or empty where that is not trained on.
        kept: N bool, where the anchor alone is the teacher.
        augmenter_inputs: Arrays of N x ...
        sources: The files or tables.
        pad_token_id: Fills the right side of a batch; never visible.
        num_skipped: Samples left out because they are too long.
        num_cut: Samples shortened to the longest length allowed.
        states_of: Reads the cached states of a batch; None where nothing is cached.
        scales_of: Chooses the augmenters of each row of a batch; None where all are on.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]
    completion_bytes: NDArray[np.int32]
    texts: NDArray[np.uint8]
    text_offsets: NDArray[np.int64]
    source_ids: NDArray[np.int32]
    row_numbers: NDArray[np.int64]
    told_ids: NDArray[np.int32]
    kept: NDArray[np.bool_]
    augmenter_inputs: Inputs = field(default_factory=dict)
    sources: tuple[Source, ...]
    pad_token_id: int
    num_skipped: int = 0
    num_cut: int = 0
    states_of: Callable[[Batch], Mapping[str, StoredStates]] | None = None
    scales_of: Callable[[Batch], Mapping[str, Tensor]] | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], *, pad_token_id: int) -> Dataset:
        """Put samples into columns; all have augmenter inputs of the same names and shapes."""
        sources = tuple(dict.fromkeys(sample.place.source for sample in samples))
        ids = {source: id for id, source in enumerate(sources)}
        texts = [sample.prompt_text.encode() for sample in samples]
        return cls(
            input_ids=_joined([sample.input_ids for sample in samples], np.int32),
            offsets=_offsets(len(sample.input_ids) for sample in samples),
            prompt_lengths=np.array([sample.prompt_length for sample in samples], dtype=np.int32),
            completion_bytes=np.array([sample.completion_bytes for sample in samples], dtype=np.int32),
            texts=np.frombuffer(b"".join(texts), dtype=np.uint8),
            text_offsets=_offsets(map(len, texts)),
            source_ids=np.array([ids[sample.place.source] for sample in samples], dtype=np.int32),
            row_numbers=np.array([sample.place.number for sample in samples], dtype=np.int64),
            told_ids=_joined([sample.told_ids for sample in samples], np.int32),
            kept=np.array([sample.kept for sample in samples], dtype=np.bool_),
            augmenter_inputs=_stacked([sample.augmenter_inputs for sample in samples]),
            sources=sources,
            pad_token_id=pad_token_id,
        )

    @classmethod
    def joined(cls, parts: Sequence[Dataset]) -> Dataset:
        """Put data sets one behind the other; each has samples, with augmenter inputs of the same names and shapes."""
        sources = tuple(dict.fromkeys(chain.from_iterable(part.sources for part in parts)))
        places = {source: place for place, source in enumerate(sources)}
        ids = [np.array([places[source] for source in part.sources], dtype=np.int32) for part in parts]
        first = parts[0]
        return cls(
            input_ids=np.concatenate([part.input_ids for part in parts]),
            offsets=_offsets(np.concatenate([part.lengths for part in parts])),
            prompt_lengths=np.concatenate([part.prompt_lengths for part in parts]),
            completion_bytes=np.concatenate([part.completion_bytes for part in parts]),
            texts=np.concatenate([part.texts for part in parts]),
            text_offsets=_offsets(np.concatenate([np.diff(part.text_offsets) for part in parts])),
            source_ids=np.concatenate([new[part.source_ids] for new, part in zip(ids, parts, strict=True)]),
            row_numbers=np.concatenate([part.row_numbers for part in parts]),
            told_ids=np.concatenate([part.told_ids for part in parts]),
            kept=np.concatenate([part.kept for part in parts]),
            augmenter_inputs={
                name: {key: np.concatenate([part.augmenter_inputs[name][key] for part in parts]) for key in inputs}
                for name, inputs in first.augmenter_inputs.items()
            },
            sources=sources,
            pad_token_id=first.pad_token_id,
            num_skipped=sum(part.num_skipped for part in parts),
            num_cut=sum(part.num_cut for part in parts),
        )

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: int) -> Sample:
        """Return a view of one sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"got sample {index}, but there are 0..{len(self) - 1}")
        text = self.texts[self.text_offsets[index] : self.text_offsets[index + 1]]
        return Sample(
            self.input_ids[self.offsets[index] : self.offsets[index + 1]],
            int(self.prompt_lengths[index]),
            text.tobytes().decode(),
            int(self.completion_bytes[index]),
            self._place(index),
            {
                name: {key: value[index] for key, value in inputs.items()}
                for name, inputs in self.augmenter_inputs.items()
            },
            self.told_ids[self.offsets[index] : self.offsets[index + 1]],
            bool(self.kept[index]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """N int64, tokens of each sample."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Collate these samples, with their cached states if there are any."""
        batch = collate([self[index] for index in indices], pad_token_id=self.pad_token_id)
        if self.states_of is not None:
            batch["stored_states"] = self.states_of(batch)
        if self.scales_of is not None:
            batch["augmenter_scales"] = self.scales_of(batch)
        return batch

    def num_supervised(self, indices: Sequence[int]) -> int:
        """Return how many tokens of these samples are predicted."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[chosen + 1] - self.offsets[chosen]
        return int((lengths - np.maximum(self.prompt_lengths[chosen], 1)).sum())

    def num_items(self, indices: Sequence[int]) -> int:
        """Return how many tokens of these samples the loss is a mean over: all where they are told, else predicted."""
        if not len(self.told_ids):
            return self.num_supervised(indices)
        return int(self.lengths[np.asarray(indices, dtype=np.int64)].sum())

    def where(self, index: int) -> str:
        """Return the row a sample came from, as `train.jsonl:17` or `data[16]`."""
        return str(self._place(index))

    def fingerprint(self) -> str:
        """Return the sha256 of all token ids and prompts: what a resumed run must find again."""
        digest = hashlib.sha256()
        columns: dict[str, NDArray[Any]] = {
            "offsets": self.offsets,
            "input_ids": self.input_ids,
            "prompt_lengths": self.prompt_lengths,
            "text_offsets": self.text_offsets,
            "texts": self.texts,
        }
        if len(self.told_ids):
            columns["told_ids"] = self.told_ids
        if self.kept.any():
            columns["kept"] = self.kept
        for name, inputs in self.augmenter_inputs.items():
            columns |= {f"{name} {key}": value for key, value in inputs.items()}
        for name, column in sorted(columns.items()):
            digest.update(f"{name} {column.dtype} {column.shape}\n".encode())
            digest.update(np.ascontiguousarray(column).data)
        return f"sha256:{digest.hexdigest()}"

    def _place(self, index: int) -> Place:
        return Place(self.sources[self.source_ids[index]], int(self.row_numbers[index]))


def collate(samples: Sequence[Sample], *, pad_token_id: int) -> Batch:
    """Pad samples on the right into one batch.

    Args:
        samples: B of them, of any lengths.
        pad_token_id: What fills the rest.

    Returns:
        The batch; labels are -100 on the prompt, on the first token and on padding.
    """
    width = max(len(sample.input_ids) for sample in samples)
    input_ids = np.full((len(samples), width), pad_token_id, dtype=np.int64)
    labels = np.full((len(samples), width), IGNORED, dtype=np.int64)
    told_ids = np.full_like(input_ids, pad_token_id)
    attention_mask = np.zeros((len(samples), width), dtype=np.bool_)
    for row, sample in enumerate(samples):
        length, first = len(sample.input_ids), max(sample.prompt_length, 1)
        input_ids[row, :length] = sample.input_ids
        told_ids[row, : len(sample.told_ids)] = sample.told_ids
        attention_mask[row, :length] = True
        labels[row, first:length] = sample.input_ids[first:]
    stacked = _stacked([sample.augmenter_inputs for sample in samples])
    batch = Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        labels=torch.from_numpy(labels),
        prompt_lengths=torch.tensor([sample.prompt_length for sample in samples]),
        prompt_texts=[sample.prompt_text for sample in samples],
        augmenter_inputs={
            name: {key: torch.from_numpy(value) for key, value in inputs.items()} for name, inputs in stacked.items()
        },
    )
    if len(samples[0].told_ids):
        batch["told_ids"] = torch.from_numpy(told_ids)
    if any(sample.kept for sample in samples):
        batch["kept"] = torch.tensor([sample.kept for sample in samples])
    return batch


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _stacked(inputs: Sequence[Inputs]) -> dict[str, dict[str, NDArray[Any]]]:
    return {
        name: {key: np.stack([each[name][key] for each in inputs]) for key in arrays}
        for name, arrays in (inputs[0] if inputs else {}).items()
    }
