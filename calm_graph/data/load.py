"""From rows to a data set: checked, tokenised, and none longer than the model can read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from calm_graph.data.columns import Columns, check_columns
from calm_graph.data.lengths import LengthLimit
from calm_graph.data.progress import Show, counting
from calm_graph.data.rows import ROW, Example, Place, examples_of, shape_of
from calm_graph.data.samples import Dataset, Sample
from calm_graph.data.sources import Rows, open_rows, package_of
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError
from calm_graph.model.prompts import start_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024
_MAX_SHOWN = 8
# Whoever gave the wrong file should not wait until all of it is read.
_MAX_PROBLEMS = 100


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


def load_dataset(
    data: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    long_rows: LongRows = "error",
    columns: Columns | None = None,
    told: bool = False,
    show: Show = "none",
) -> Dataset:
    """Read and tokenise rows.

    Prompt and completion are tokenised separately, so that the prompt's tokens do not depend on what follows: the
    prompt with the tokenizer's special tokens (or as the chat template wrote it), the completion without, closed by
    the end token.

    Args:
        data: Files, a data set, or rows in memory.
        tokenizer: The anchor's.
        max_length: The most tokens of a sample; None allows any.
        long_rows: What happens to longer ones.
        columns: Key of a row -> the column that holds it; None: each is under its own name.
        told: Whether each row needs its prompt as it is `told`, in as many tokens.
        show: How the progress of a large source is shown.

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: The source cannot be read, rows are wrong (the first few are listed with their places), too long or
            have nothing to predict, or no sample is left.
    """
    check_columns(columns)
    if package_of(data) == "ray":
        from calm_graph.data.ray_data import parts_of

        name, num_rows, parts = "data", None, parts_of(cast(Any, data), tokenizer, columns, told=told)
    else:
        opened = open_rows(data, columns)
        name, num_rows, parts = opened.name, opened.num_rows, _parts(opened.rows, tokenizer, told=told)
    found = Part(num_rows=0)
    lengths = LengthLimit(max_length, long_rows)
    kept: list[Dataset] = []
    with counting(name, total=num_rows, show=show) as count:
        for part in parts:
            found.add(part)
            if len(found.problems) >= _MAX_PROBLEMS:
                break
            if part.samples is not None:
                kept.append(lengths.fitted(part.samples))
            count(found.num_rows)
    if found.problems:
        raise InputError(_listed(name, found.problems))
    if found.num_rows == 0:
        raise InputError(f"{name}: no rows; each row is {ROW}")
    lengths.report(name)
    if len(found.shapes) > 1:
        logger.warning("%s: rows of several shapes: %s", name, found.shapes_text())
    joined = Dataset.joined([samples for samples in kept if len(samples)])
    return replace(joined, num_skipped=lengths.num_skipped, num_cut=lengths.num_cut)


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


def _parts(rows: Iterator[tuple[Place, object]], tokenizer: PreTrainedTokenizerBase, *, told: bool) -> Iterator[Part]:
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield make_part(chunk, tokenizer, told=told)


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


def _listed(name: str, problems: Sequence[tuple[Place, str]]) -> str:
    """Say what is wrong, each kind of problem once."""
    places: dict[str, list[Place]] = {}
    for place, problem in problems:
        places.setdefault(problem, []).append(place)
    least = "at least " if len(problems) >= _MAX_PROBLEMS else ""
    lines = [f"{name}: {least}{len(problems)} unusable row{'s' if len(problems) > 1 else ''}"]
    for problem, (first, *others) in list(places.items())[:_MAX_SHOWN]:
        lines.append(f"  {first}{f' and {len(others)} more' if others else ''}: {problem}")
    if len(places) > _MAX_SHOWN:
        lines.append(f"  and other problems of {sum(map(len, list(places.values())[_MAX_SHOWN:]))} more")
    return "\n".join(lines)
