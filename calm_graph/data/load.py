"""From a source of rows to a data set: checked, tokenised, and none longer than the model can read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from calm_graph.data.columns import Columns, check_columns
from calm_graph.data.lengths import LengthLimit
from calm_graph.data.part import ROWS_AT_ONCE, Part, make_part
from calm_graph.data.rows import ROW, Place
from calm_graph.data.samples import Dataset
from calm_graph.data.sources import Rows, open_rows, package_of
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError
from calm_graph.progress import Show, progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_SHOWN = 8
# Whoever gave the wrong file should not wait until all of it is read.
_MAX_PROBLEMS = 100


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
    with progress(show, label=f"read {name}", total=num_rows, unit="rows", passing=True) as advance:
        for part in parts:
            found.add(part)
            if len(found.problems) >= _MAX_PROBLEMS:
                break
            if part.samples is not None:
                kept.append(lengths.fitted(part.samples))
            advance(part.num_rows)
    if found.problems:
        raise InputError(_listed(name, found.problems))
    if found.num_rows == 0:
        raise InputError(f"{name}: no rows; each row is {ROW}")
    lengths.report(name)
    if len(found.shapes) > 1:
        logger.warning("%s: rows of several shapes: %s", name, found.shapes_text())
    joined = Dataset.joined([samples for samples in kept if len(samples)])
    return replace(joined, num_skipped=lengths.num_skipped, num_cut=lengths.num_cut)


def _parts(rows: Iterator[tuple[Place, object]], tokenizer: PreTrainedTokenizerBase, *, told: bool) -> Iterator[Part]:
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield make_part(chunk, tokenizer, told=told)


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
