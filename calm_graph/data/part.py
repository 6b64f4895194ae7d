"""Some rows at a time: checked and tokenised, in this process or in a task of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from calm_graph.data.rows import Example, Place, examples_of, shape_of
from calm_graph.data.samples import Dataset, Sample
from calm_graph.errors import InputError
from calm_graph.model.prompts import start_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1024


@dataclass(slots=True)
class Part:
    """What became of some rows.

    Args:
        num_rows: How many there were.
        samples: Of the rows that can be used.
        problems: Place of a row -> what is wrong with it.
        shapes: Shape of rows -> how many have it.
        first_of_shape: Shape of rows -> the first that has it.
    """

    num_rows: int
    samples: Dataset | None = None
    problems: list[tuple[Place, str]] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    first_of_shape: dict[str, Place] = field(default_factory=dict)

    def add(self, later: Part) -> None:
        """Count the rows of a later part as well; its samples must have the same inputs, and are not kept here."""
        self.num_rows += later.num_rows
        self.problems += later.problems
        self.shapes += later.shapes
        self.first_of_shape = later.first_of_shape | self.first_of_shape
        if later.samples is not None:
            self.samples = later.samples if self.samples is None else self.samples
            self.problems += _unlike(self.samples[0], [later.samples[0]])

    def moved(self, by: int) -> Part:
        """Return the same rows standing `by` further on in their source."""

        def further(place: Place) -> Place:
            return Place(place.source, place.number + by)

        return Part(
            self.num_rows,
            None if self.samples is None else replace(self.samples, row_numbers=self.samples.row_numbers + by),
            [(further(place), problem) for place, problem in self.problems],
            self.shapes,
            {shape: further(place) for shape, place in self.first_of_shape.items()},
        )

    def shapes_text(self) -> str:
        """Return how many rows have each shape, and where the first of them is."""
        return "; ".join(
            f"{count} with {shape} (the first is {self.first_of_shape[shape]})" for shape, count in self.shapes.items()
        )


def make_part(rows: Sequence[tuple[Place, object]], tokenizer: PreTrainedTokenizerBase, *, told: bool = False) -> Part:
    """Check and tokenise some rows.

    Args:
        rows: Each with its place.
        tokenizer: The anchor's.
        told: As in `load_dataset`.

    Returns:
        Their samples, and what is wrong with the others.
    """
    part = Part(num_rows=len(rows))
    examples: list[Example] = []
    for place, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            found = examples_of(row, place, tokenizer)
            if told and found[0].told is None:
                part.problems.append((place, 'no "told"; with told_layer a row is {"prompt", "told", "completion"}'))
                continue
            examples += found
            shape = shape_of(row)
            part.shapes[shape] += 1
            part.first_of_shape.setdefault(shape, place)
        except InputError as error:
            part.problems.append((place, str(error)))
    if examples and not part.problems:
        samples = list(_tokenised(examples, tokenizer, told=told))
        part.problems += [
            (sample.place, f"its {len(sample.input_ids)} tokens leave none to be predicted")
            for sample in samples
            if sample.num_supervised < 1
        ]
        part.problems += _unlike(samples[0], samples)
        if told:
            part.problems += [
                (sample.place, _lengths_differ(sample))
                for sample in samples
                if len(sample.told_ids) != len(sample.input_ids)
            ]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if not part.problems:
            part.samples = Dataset.of(samples, pad_token_id=int(pad or 0))
    return part


def _lengths_differ(sample: Sample) -> str:
    length, told = sample.prompt_length, len(sample.told_ids) - (len(sample.input_ids) - sample.prompt_length)
    return f"told: got {told} tokens, but the prompt has {length}; states are compared token by token"


def _tokenised(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, told: bool) -> Iterator[Sample]:
    start, end = start_ids(tokenizer), tokenizer.eos_token_id
    prompts = tokenizer([example.prompt for example in examples], add_special_tokens=False)["input_ids"]
    completions = tokenizer([example.completion for example in examples], add_special_tokens=False)["input_ids"]
    # Of the same shape, so neither rendered nor closed.
    told_prompts = [example.told for example in examples] if told else []
    told_ids = tokenizer(told_prompts, add_special_tokens=False)["input_ids"] if told else [None] * len(examples)
    for example, prompt, completion, instead in zip(examples, prompts, completions, told_ids, strict=True):
        before = list(prompt) if example.rendered else start + list(prompt)
        after = list(completion) + ([] if example.closed or end is None else [end])
        yield Sample(
            input_ids=np.array(before + after, dtype=np.int32),
            told_ids=np.array([] if instead is None else start + list(instead) + after, dtype=np.int32),
            prompt_length=len(before) if example.prompt else 0,
            prompt_text=example.prompt_text,
            completion_bytes=len(example.completion.encode()),
            place=example.place,
            augmenter_inputs=example.augmenter_inputs,
        )


def _unlike(first: Sample, samples: Sequence[Sample]) -> list[tuple[Place, str]]:
    expected = _shapes(first)
    return [
        (
            sample.place,
            f"augmenter_inputs have the shapes {_shapes(sample)}, but those of {first.place} are {expected}; inputs of "
            "one batch are stacked, so all rows need the same",
        )
        for sample in samples
        if _shapes(sample) != expected
    ]


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{key}": value.shape
        for name, inputs in sorted(sample.augmenter_inputs.items())
        for key, value in sorted(inputs.items())
    }
