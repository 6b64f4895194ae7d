"""From rows to batches: token ids, labels, padding."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

import torch
from torch import Tensor

from calm_graph.data.rows import Example, Rows, read_examples
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError
from calm_graph.model.prompts import start_ids
from calm_graph.model.stored import StoredStates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a position that is not trained on."""

_TOKENISED_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenised sample.

    Args:
        input_ids: T int32, prompt and completion.
        prompt_length: How many of them are the prompt; 0 for a `{"text"}` row.
        prompt_text: What the augmenters read for the prompt.
        completion_bytes: UTF-8 bytes of the completion's text.
        where: The row it came from.
        augmenter_inputs: Augmenter name -> inputs of a model that reads something else than text, one sample's.
    """

    input_ids: Tensor
    prompt_length: int
    prompt_text: str
    completion_bytes: int
    where: str
    augmenter_inputs: Mapping[str, Mapping[str, Tensor]]

    @property
    def num_supervised(self) -> int:
        """How many tokens are predicted; a first token has nothing before it to be predicted from."""
        return len(self.input_ids) - max(self.prompt_length, 1)


class Batch(TypedDict):
    """What the model is called with.

    input_ids, attention_mask (bool) and labels are B x T, padded on the right; prompt_lengths is B; prompt_texts has
    one text per sample; augmenter_inputs has tensors B x ... for each augmenter with inputs of its own; stored_states
    is there when states are cached.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    prompt_lengths: Tensor
    prompt_texts: list[str]
    augmenter_inputs: dict[str, dict[str, Tensor]]
    stored_states: NotRequired[Mapping[str, StoredStates]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """The tokenised samples of one file or list.

    Args:
        samples: In the order of the rows.
        pad_token_id: Fills the right side of a batch; never visible.
        num_skipped: Rows left out because they are too long.
        num_cut: Rows shortened to the longest length allowed.
        states_of: Reads the cached states of a batch; None where nothing is cached.
    """

    samples: tuple[Sample, ...]
    pad_token_id: int
    num_skipped: int = 0
    num_cut: int = 0
    states_of: Callable[[Batch], Mapping[str, StoredStates]] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Collate these samples, with their cached states if there are any."""
        batch = collate([self.samples[index] for index in indices], pad_token_id=self.pad_token_id)
        if self.states_of is not None:
            batch["stored_states"] = self.states_of(batch)
        return batch

    def fingerprint(self) -> str:
        """Return the sha256 of all token ids and prompts: what a resumed run must find again."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{len(sample.input_ids)} {sample.prompt_length} {sample.prompt_text}\n".encode())
            digest.update(sample.input_ids.numpy().tobytes())
            for name, inputs in sorted(sample.augmenter_inputs.items()):
                for key, value in sorted(inputs.items()):
                    digest.update(f"{name} {key} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
        return f"sha256:{digest.hexdigest()}"


def load_dataset(
    data: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, long_rows: LongRows = "error"
) -> Dataset:
    """Read and tokenise rows.

    Prompt and completion are tokenised separately, so that the prompt's tokens do not depend on what follows: the
    prompt with the tokenizer's special tokens (or as the chat template wrote it), the completion without, closed by
    the end token.

    Args:
        data: A JSONL file, or a list of rows.
        tokenizer: The anchor's.
        max_length: The most tokens of a sample; None allows any.
        long_rows: What happens to longer ones.

    Returns:
        The samples.

    Raises:
        InputError: A row is wrong, too long or has nothing to predict, or no sample is left.
    """
    examples = read_examples(data, tokenizer)
    samples: list[Sample] = []
    too_long: list[Sample] = []
    num_cut = 0
    first_inputs: tuple[str, dict[str, tuple[int, ...]]] | None = None
    for sample in _tokenise(examples, tokenizer):
        shapes = _shapes(sample)
        where, expected = first_inputs = first_inputs or (sample.where, shapes)
        if shapes != expected:
            raise InputError(
                f"{sample.where}: augmenter_inputs have the shapes {shapes}, but those of {where} are {expected}; "
                "inputs of one batch are stacked, so all rows need the same"
            )
        if sample.num_supervised < 1:
            raise InputError(f"{sample.where}: its {len(sample.input_ids)} tokens leave none to be predicted")
        if max_length is None or len(sample.input_ids) <= max_length:
            samples.append(sample)
        elif long_rows == "cut" and sample.prompt_length < max_length:
            num_cut += 1
            samples.append(_cut(sample, max_length))
        else:
            too_long.append(sample)
    if too_long and long_rows == "error":
        first = too_long[0]
        raise InputError(
            f"{first.where}: got {len(first.input_ids)} tokens, but at most {max_length} are allowed (max_length, else "
            f"the anchor's context); {len(too_long)} of {len(examples)} samples are too long. Raise max_length, "
            "shorten them, or set long_rows to 'skip' or 'cut'"
        )
    if not samples:
        raise InputError(f"{too_long[0].where}: all {len(examples)} samples are longer than max_length={max_length}")
    if too_long or num_cut:
        name = data if isinstance(data, str) else samples[0].where.rpartition(":")[0] or "data"
        logger.warning("%s: %d samples skipped and %d cut at %s tokens", name, len(too_long), num_cut, max_length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Dataset(tuple(samples), int(pad or 0), num_skipped=len(too_long), num_cut=num_cut)


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{key}": tuple(value.shape)
        for name, inputs in sorted(sample.augmenter_inputs.items())
        for key, value in sorted(inputs.items())
    }


def _cut(sample: Sample, length: int) -> Sample:
    # The bytes are shared out by tokens: exact counts would need the text to be cut where a token ends.
    kept = length - sample.prompt_length
    share = kept / (len(sample.input_ids) - sample.prompt_length)
    return Sample(
        sample.input_ids[:length].clone(),
        sample.prompt_length,
        sample.prompt_text,
        max(1, round(sample.completion_bytes * share)),
        sample.where,
        sample.augmenter_inputs,
    )


def _tokenise(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Sample]:
    start = start_ids(tokenizer)
    for first in range(0, len(examples), _TOKENISED_AT_ONCE):
        chunk = examples[first : first + _TOKENISED_AT_ONCE]
        prompts = tokenizer([example.prompt for example in chunk], add_special_tokens=False)["input_ids"]
        completions = tokenizer([example.completion for example in chunk], add_special_tokens=False)["input_ids"]
        for example, prompt, completion in zip(chunk, prompts, completions, strict=True):
            before = list(prompt) if example.rendered else start + list(prompt)
            closing = [] if example.closed or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            yield Sample(
                input_ids=torch.tensor(before + list(completion) + closing, dtype=torch.int32),
                prompt_length=len(before) if example.prompt else 0,
                prompt_text=example.prompt_text,
                completion_bytes=len(example.completion.encode()),
                where=example.where,
                augmenter_inputs={
                    name: {key: torch.as_tensor(value) for key, value in inputs.items()}
                    for name, inputs in example.augmenter_inputs.items()
                },
            )


def collate(samples: Sequence[Sample], *, pad_token_id: int) -> Batch:
    """Pad samples on the right into one batch.

    Args:
        samples: B of them, of any lengths.
        pad_token_id: What fills the rest.

    Returns:
        The batch; labels are -100 on the prompt, on the first token and on padding.
    """
    width = max(len(sample.input_ids) for sample in samples)
    input_ids = torch.full((len(samples), width), pad_token_id, dtype=torch.int64)
    labels = torch.full((len(samples), width), IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros((len(samples), width), dtype=torch.bool)
    for row, sample in enumerate(samples):
        length, first = len(sample.input_ids), max(sample.prompt_length, 1)
        input_ids[row, :length] = sample.input_ids
        attention_mask[row, :length] = True
        labels[row, first:length] = sample.input_ids[first:]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        prompt_lengths=torch.tensor([sample.prompt_length for sample in samples]),
        prompt_texts=[sample.prompt_text for sample in samples],
        augmenter_inputs={
            name: {key: torch.stack([sample.augmenter_inputs[name][key] for sample in samples]) for key in inputs}
            for name, inputs in samples[0].augmenter_inputs.items()
        },
    )
