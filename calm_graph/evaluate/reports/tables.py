"""Results as tables: a block for each task and metric, a line for each language, a column for each system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from calm_graph.evaluate.measures.metrics import metric
from calm_graph.evaluate.reports.results import AVERAGE, Compared, Results, Row, distinct


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a table.

    Args:
        text: The value.
        spread: Its interval.
        is_best: Whether no other of the line is better.
    """

    text: str
    spread: str
    is_best: bool


@dataclass(frozen=True, slots=True)
class Table:
    """All values of one metric of one task.

    Args:
        suite: Of the task.
        task: Its name.
        metric: What was measured.
        systems: Heads of the columns.
        lines: Language (and seed, where there are several, and then their mean between the lowest and the highest) -> a
            cell for each system; None where nothing was measured.
    """

    suite: str
    task: str
    metric: str
    systems: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    @property
    def title(self) -> str:
        """What it shows."""
        better = "higher" if metric(self.metric).higher_is_better else "lower"
        return f"{self.suite}, {self.task}: {self.metric} ({better} is better)"


def tables(results: Results) -> list[Table]:
    """Return the tables of results, in the order in which the values came."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.suite, row.task, row.metric), []).append(row)
    return [_table(*key, rows) for key, rows in groups.items()]


def text(results: Results) -> str:
    """Return all tables for a terminal, with what systems differ by; the best value of each line has a star."""
    return "\n\n".join(
        "\n".join([table.title, *_lines(table), *_difference_lines(table, results)]) for table in tables(results)
    )


def shown(value: float, name: str) -> str:
    """Return a value of a metric with as many digits as say something."""
    return f"{value:.{metric(name).num_digits}f}"


def shown_difference(found: Compared) -> tuple[str, str]:
    """Return a difference, with its sign, and its interval."""
    value, low, high = (shown(each, found.metric) for each in (found.value, found.low, found.high))
    return f"{'+' if found.value > 0 else ''}{value}", f"{low}, {high}"


def shown_seeds(found: Compared) -> str:
    """Return which seed a difference is of, or how many."""
    if found.seed is not None:
        return f"seed {found.seed}"
    counts = found.num_seeds, found.num_seeds_against
    return f"mean of {counts[0]} seeds" if counts[0] == counts[1] else f"mean of {counts[0]} against {counts[1]}"


def line_name(row: Row, *, with_seed: bool) -> str:
    """Return the head of a row's line."""
    parts = [row.language or "all"]
    if row.train_rows is not None:
        parts.append(f"{row.train_rows} training rows")
    if with_seed:
        parts.append(f"seed {row.seed}")
    return ", ".join(parts)


def _table(suite: str, task: str, name: str, rows: Sequence[Row]) -> Table:
    systems = distinct(row.system for row in rows)
    with_seed = len({row.seed for row in rows}) > 1
    lines: dict[str, dict[str, Row]] = {}
    for group in _by_line(rows):
        for row in group:
            lines.setdefault(line_name(row, with_seed=with_seed), {})[row.system] = row
        if means := _means(group):
            head = line_name(group[0], with_seed=False)
            lines[f"{head}, mean of {len({row.seed for row in group})} seeds"] = means
    return Table(
        suite,
        task,
        name,
        tuple(systems),
        tuple((head, tuple(_cells(name, systems, found))) for head, found in lines.items()),
    )


def _by_line(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Put together the rows that differ in their seeds and systems only; averages over languages come last."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.language == AVERAGE, row.seed)):
        groups.setdefault(line_name(row, with_seed=False), []).append(row)
    return groups.values()


def _means(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the mean over seeds of each system that has all of them, between its lowest and its highest."""
    num_seeds = len({row.seed for row in rows})
    of_system: dict[str, list[Row]] = {}
    for row in rows:
        of_system.setdefault(row.system, []).append(row)
    means = {}
    for system, found in of_system.items():
        if num_seeds > 1 and len(found) == num_seeds:
            values = [row.value for row in found]
            means[system] = replace(found[0], value=sum(values) / len(values), low=min(values), high=max(values))
    return means


def _cells(name: str, systems: Sequence[str], found: dict[str, Row]) -> Iterator[Cell | None]:
    values = [row.value for row in found.values()]
    best = max(values) if metric(name).higher_is_better else min(values)
    for system in systems:
        row = found.get(system)
        if row is None:
            yield None
        else:
            spread = f"{shown(row.low, name)}, {shown(row.high, name)}"
            yield Cell(shown(row.value, name), spread, row.value == best and len(values) > 1)


def _lines(table: Table) -> list[str]:
    lines = [["", *table.systems], *([head, *map(_shown_cell, cells)] for head, cells in table.lines)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _difference_lines(table: Table, results: Results) -> Iterator[str]:
    """The differences over all languages, where there are averages."""
    of_table = (table.suite, table.task, table.metric)
    found = [each for each in results.differences if (each.suite, each.task, each.metric) == of_table]
    found = [each for each in found if each.language == AVERAGE] or found
    many_languages = len({each.language for each in found}) > 1
    many_seeds = len({each.seed for each in found}) > 1
    for each in found:
        value, spread = shown_difference(each)
        heads = [f"{each.system} - {each.against}"]
        heads += [each.language] if many_languages else []
        heads += [shown_seeds(each)] if many_seeds else []
        yield f"{', '.join(heads)}: {value} [{spread}]"


def _shown_cell(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell.text}{'*' if cell.is_best else ''} [{cell.spread}]"
