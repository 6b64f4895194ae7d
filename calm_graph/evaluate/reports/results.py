"""Measured values with their intervals: the rows of a report, as they are kept in a file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from calm_graph.errors import EvaluationError

AVERAGE = "average"
"""The `language` of a row that is the mean over the languages of its task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured value.

    Args:
        suite: Of the task.
        task: Its name.
        language: Of its rows; `average` is the mean over languages.
        system: What was measured.
        seed: Of the run.
        metric: What of it.
        value: The value.
        low: Lower end of the 95% interval.
        high: Upper end.
        count: Rows that were measured.
        train_rows: Rows that the system was trained on, where the number of them is what is studied.
    """

    suite: str
    task: str
    language: str
    system: str
    seed: int
    metric: str
    value: float
    low: float
    high: float
    count: int
    train_rows: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all others."""
        return self.suite, self.task, self.language, self.system, self.seed, self.metric, self.train_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How much more one system has than another, on the same rows (paired bootstrap).

    Args:
        suite: Of the task.
        task: Its name.
        language: Of its rows.
        system: The one.
        against: The other.
        seed: Of the run; None: values are means over all seeds, and their interval is that of drawn rows, not of seeds.
        metric: What was measured.
        value: The one's less the other's.
        low: Lower end of the 95% interval.
        high: Upper end.
        probability: Of a difference as far from 0 if there were none.
        num_seeds: Of the one, in its mean.
        num_seeds_against: Of the other.
    """

    suite: str
    task: str
    language: str
    system: str
    against: str
    seed: int | None = None
    metric: str
    value: float
    low: float
    high: float
    probability: float
    num_seeds: int = 1
    num_seeds_against: int = 1

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from all others."""
        return self.suite, self.task, self.language, self.system, self.against, self.seed, self.metric


@dataclass(slots=True)
class Results:
    """All that was measured.

    Args:
        rows: The values.
        differences: Between systems.
    """

    rows: list[Row] = field(default_factory=list)
    differences: list[Compared] = field(default_factory=list)

    def merged(self, later: Results) -> Results:
        """Return both; what both have is taken from `later`."""
        rows = {row.key: row for row in [*self.rows, *later.rows]}
        differences = {found.key: found for found in [*self.differences, *later.differences]}
        return Results(list(rows.values()), list(differences.values()))

    def of(self, tasks: Container[tuple[str, str]]) -> Results:
        """Return what belongs to some tasks, each named by its suite and its name."""
        return Results(
            [row for row in self.rows if (row.suite, row.task) in tasks],
            [each for each in self.differences if (each.suite, each.task) in tasks],
        )

    def consistent(self) -> Results:
        """Return what fits together: averages over all languages that there are, and differences of these values."""
        parts: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            if row.language != AVERAGE:
                parts.setdefault(replace(row, language=AVERAGE).key, []).append(row)
        most: dict[tuple[Any, ...], int] = {}
        for found in parts.values():
            most[_group(found[0])] = max(most.get(_group(found[0]), 0), len(found))

        def fits(row: Row) -> bool:
            found = parts.get(row.key, [])
            return len(found) == most.get(_group(row)) and row.count == sum(part.count for part in found)

        rows = [row for row in self.rows if row.language != AVERAGE or fits(row)]
        values: dict[tuple[Any, ...], dict[int, float]] = {}
        for row in rows:
            values.setdefault(replace(row, seed=-1).key, {})[row.seed] = row.value
        return Results(rows, [each for each in self.differences if _is_of(each, values)])

    def as_dict(self) -> dict[str, Any]:
        """Return what is written: `{"rows": [...], "differences": [...]}`."""
        return {
            "rows": [_rounded(row) for row in self.rows],
            "differences": [_rounded(found) for found in self.differences],
        }

    def write(self, path: Path) -> None:
        """Write a JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.tmp")
        found = self.as_dict()
        lines = [
            f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in found[name]) + "\n]"
            for name in found
        ]
        scratch.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
        os.replace(scratch, path)


def read_results(path: Path) -> Results:
    """Read a JSON file of results.

    Args:
        path: The file; `differences` may be missing.

    Returns:
        What is in it.

    Raises:
        EvaluationError: It is no such file.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        rows = [Row(**_known(Row, row)) for row in found["rows"]]
        differences = [Compared(**_known(Compared, row)) for row in found.get("differences", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f'{path}: no file of results ({type(error).__name__}: {error}); it should hold {{"rows": [...]}}'
        ) from error
    return Results(rows, differences)


def split_rows(name: str) -> tuple[str, int | None]:
    """Return which system a name is and on how many of the rows it was trained.

    Args:
        name: What a baseline was asked for by.

    Returns:
        `lora_rows_500` is (`lora`, 500); without a number all rows are meant, and it is None.
    """
    found = re.fullmatch(r"(\w+)_rows_([1-9]\d*)", name)
    return (found[1], int(found[2])) if found else (name, None)


def distinct(values: Iterable[str]) -> list[str]:
    """Return the values in the order in which they first come."""
    return list(dict.fromkeys(values))


def _group(row: Row) -> tuple[Any, ...]:
    """What rows that differ in their systems and languages have in common."""
    return row.suite, row.task, row.seed, row.metric


def _is_of(found: Compared, values: Mapping[tuple[Any, ...], Mapping[int, float]]) -> bool:
    """Whether a difference is that of these values (by seed), but for rounding in files."""
    means = []
    for system, num_seeds in ((found.system, found.num_seeds), (found.against, found.num_seeds_against)):
        trained, train_rows = split_rows(system)
        key = (found.suite, found.task, found.language, trained, -1, found.metric, train_rows)
        of_seeds = values.get(key, {})
        used = list(of_seeds.values()) if found.seed is None else [of_seeds.get(found.seed, math.nan)]
        means.append(sum(used) / len(used) if len(used) == num_seeds else math.nan)
    return abs(means[0] - means[1] - found.value) < 1e-5


def _known(kind: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in row.items() if name in names}


def _rounded(row: Row | Compared) -> dict[str, Any]:
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(row).items()
        if value is not None
    }
