"""What was measured of each test row, as kept in files, and what follows from it: values, averages and differences."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.measures.bootstrap import difference, draws, interval
from calm_graph.evaluate.measures.metrics import metric
from calm_graph.evaluate.reports.results import AVERAGE, Compared, Results, Row, distinct, split_rows

Floats = NDArray[np.float64]

SUMS = "sums.jsonl"
"""The file, beside results.json."""


@dataclass(frozen=True)
class Measured:
    """One metric of one system and task, row by row, so that it can be compared with what is measured later.

    Args:
        suite: Of the task.
        task: Its name.
        language: Of its rows.
        system: What was measured.
        seed: Of the run.
        metric: What of it.
        rows: A digest of the test rows: only values of the same rows are compared.
        sums: float [N, S], what the metric sums over rows.
    """

    suite: str
    task: str
    language: str
    system: str
    seed: int
    metric: str
    rows: str
    sums: Floats

    @property
    def key(self) -> tuple[str, str, str, str, int, str]:
        """What tells it from all others."""
        return self.suite, self.task, self.language, self.system, self.seed, self.metric

    @property
    def count(self) -> int:
        """How many rows were measured."""
        return len(self.sums)

    @cached_property
    def value(self) -> float:
        """The metric of all rows."""
        return float(metric(self.metric).value(self.sums.sum(axis=0)))

    @cached_property
    def drawn(self) -> Floats:
        """The metric of draws of the rows; equally many rows are drawn alike, so that systems and seeds are paired."""
        return draws(self.sums, metric(self.metric).value)


@dataclass(frozen=True)
class _Average:
    """The mean over the languages of a task."""

    parts: Sequence[Measured]

    @property
    def key(self) -> tuple[str, str, str, str, int, str]:
        suite, task, _, system, seed, name = self.parts[0].key
        return suite, task, AVERAGE, system, seed, name

    @property
    def seed(self) -> int:
        return self.parts[0].seed

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((part.language, part.rows) for part in self.parts))

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    @cached_property
    def value(self) -> float:
        return float(np.mean([part.value for part in self.parts]))

    @cached_property
    def drawn(self) -> Floats:
        # Test sets that are translations of each other have the same rows in every draw.
        return np.asarray(np.mean([part.drawn for part in self.parts], axis=0))


def results_of(measured: Iterable[Measured]) -> Results:
    """Work out what is reported.

    Args:
        measured: Row by row.

    Returns:
        Values with their intervals, their averages over the languages of a task for the systems that have all of them,
        and what the composition (or the first system, where there is none) has more than each other on the same rows:
        for each seed, and on average over all seeds where one of the two has several.
    """
    found: list[Measured | _Average] = list(measured)
    found += _averages(each for each in found if isinstance(each, Measured))
    return Results([_row(each) for each in found], list(_differences(found)))


def _averages(measured: Iterable[Measured]) -> Iterator[_Average]:
    groups: dict[tuple[str, str, int, str], dict[str, list[Measured]]] = {}
    for each in measured:
        systems = groups.setdefault((each.suite, each.task, each.seed, each.metric), {})
        systems.setdefault(each.system, []).append(each)
    for systems in groups.values():
        most = max(map(len, systems.values()))
        yield from (_Average(parts) for parts in systems.values() if len(parts) == most > 1)


def _differences(found: Sequence[Measured | _Average]) -> Iterator[Compared]:
    groups: dict[tuple[str, str, str, str], dict[str, list[Measured | _Average]]] = {}
    for each in found:
        suite, task, language, system, _, name = each.key
        groups.setdefault((suite, task, language, name), {}).setdefault(system, []).append(each)
    systems = distinct(each.key[3] for each in found)
    system = "composed" if "composed" in systems else systems[0] if systems else ""
    for group in groups.values():
        ones = group.pop(system, [])
        for others in group.values():
            for one, other in product(ones, others):
                if one.seed == other.seed and one.rows == other.rows:
                    yield _compared([one], [other], seed=one.seed)
            if max(len(ones), len(others)) > 1 and _same_rows(ones, others):
                yield _compared(ones, others, seed=None)


def _same_rows(ones: Sequence[Measured | _Average], others: Sequence[Measured | _Average]) -> bool:
    """Whether the means over all seeds are of the same rows: of one test set, or of one for each seed."""
    by_seed, against = ({each.seed: each.rows for each in found} for found in (ones, others))
    return bool(ones) and (by_seed == against or len({*by_seed.values(), *against.values()}) == 1)


def _compared(
    ones: Sequence[Measured | _Average], others: Sequence[Measured | _Average], *, seed: int | None
) -> Compared:
    def mean(found: Sequence[Measured | _Average]) -> tuple[float, Floats]:
        return float(np.mean([each.value for each in found])), np.mean([each.drawn for each in found], axis=0)

    (value, drawn), (value_against, drawn_against) = mean(ones), mean(others)
    apart = difference(value, value_against, drawn, drawn_against)
    suite, task, language, system, _, name = ones[0].key
    return Compared(
        suite=suite,
        task=task,
        language=language,
        system=system,
        against=others[0].key[3],
        seed=seed,
        num_seeds=len(ones),
        num_seeds_against=len(others),
        metric=name,
        value=apart.value,
        low=apart.low,
        high=apart.high,
        probability=apart.probability,
    )


def _row(found: Measured | _Average) -> Row:
    suite, task, language, system, seed, name = found.key
    trained, train_rows = split_rows(system)
    spread = interval(found.value, found.drawn)
    return Row(
        suite=suite,
        task=task,
        language=language,
        system=trained,
        train_rows=train_rows,
        seed=seed,
        metric=name,
        value=spread.value,
        low=spread.low,
        high=spread.high,
        count=found.count,
    )


def write_measured(measured: Iterable[Measured], path: Path) -> None:
    """Write a file of JSON Lines, whole or not at all.

    Args:
        measured: All that it should hold.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        for each in measured:
            names = {name: getattr(each, name) for name in Measured.__annotations__ if name != "sums"}
            file.write(json.dumps({**names, "sums": each.sums.tolist()}, ensure_ascii=False) + "\n")
    os.replace(scratch, path)


def read_measured(path: Path) -> list[Measured]:
    """Read such a file.

    Args:
        path: The file.

    Returns:
        What is in it; nothing if it is not there.

    Raises:
        EvaluationError: It is damaged.
    """
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        return [Measured(**{**row, "sums": np.asarray(row["sums"], dtype=np.float64)}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: damaged ({type(error).__name__}: {error}); remove it and evaluate again, answers are kept"
        ) from error
