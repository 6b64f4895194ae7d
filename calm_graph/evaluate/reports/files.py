"""Folders of results: what an evaluation adds to its own, and several of them put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.reports.measured import SUMS, Measured, read_measured, results_of, write_measured
from calm_graph.evaluate.reports.results import AVERAGE, Results, read_results

_SAME = 1e-4
"""Values that are not further apart, relative to them, are the same: another machine sums in another order."""


class ResultsFolder:
    """The results of a folder, to which an evaluation adds its own.

    Args:
        path: Of the folder, which may be new.

    Raises:
        EvaluationError: What is in it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "results.json"
        self.results = read_results(file) if file.is_file() else Results()
        self._measured = {each.key: each for each in read_measured(path / SUMS)}

    def add(self, measured: Iterable[Measured]) -> None:
        """Keep what was measured, and work out all results again; what was there already is replaced.

        Args:
            measured: Row by row.
        """
        self._measured |= {each.key: each for each in measured}
        self.results = self.results.merged(results_of(self._measured.values())).consistent()
        write_measured(self._measured.values(), self.path / SUMS)
        self.results.write(self.path / "results.json")


def merge_files(paths: Sequence[Path], *, names: Sequence[str | None] | None = None) -> Results:
    """Put the results of several evaluations together.

    Args:
        paths: Folders of results, or files of them.
        names: For each, what its `composed` is called among the others; None: as it is.

    Returns:
        All of them together, and the differences between systems of several folders, where rows were the same.

    Raises:
        EvaluationError: One is no file of results, or two have different values of the same.
    """
    merged = Results()
    known: dict[tuple[Any, ...], Measured] = {}
    for path, name in zip(paths, names or [None] * len(paths), strict=True):
        file = path / "results.json" if path.is_dir() else path
        found, measured = read_results(file), read_measured(file.with_name(SUMS))
        if name is not None:
            found = _renamed(found, name)
            measured = [replace(each, system=_new(each.system, name)) for each in measured]
        before = {row.key: row for row in merged.rows}
        for row in found.rows:
            one = before.get(row.key, row)
            if row.language != AVERAGE and not math.isclose(one.value, row.value, rel_tol=_SAME):
                raise EvaluationError(
                    f"{path}: has {one.system}'s {one.metric} in {one.suite}/{one.task}/{one.language} of seed "
                    f"{one.seed} too, and it is {row.value:g}, not {one.value:g}; evaluate other seeds with --seed, "
                    "and name another checkpoint: NAME=RESULTS"
                )
        merged = merged.merged(found)
        known |= {each.key: each for each in measured}
    return merged.merged(results_of(known.values())).consistent()


def _renamed(results: Results, name: str) -> Results:
    return Results(
        [replace(row, system=_new(row.system, name)) for row in results.rows],
        [replace(row, system=_new(row.system, name), against=_new(row.against, name)) for row in results.differences],
    )


def _new(system: str, name: str) -> str:
    return name if system == "composed" else system
