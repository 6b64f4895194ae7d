"""Pictures of results: bars with their intervals, and curves over the number of training rows."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calm_graph.evaluate.measures.metrics import metric
from calm_graph.evaluate.reports.results import AVERAGE, Results, Row, distinct

_COLOURS = (
    "#d9772b",
    "#2f6db5",
    "#3b9b6d",
    "#8a5fb0",
    "#c0504d",
    "#4aa5b5",
    "#b09a3b",
    "#8a8f98",
    "#6b7a99",
    "#b56d94",
)
_LETTERS_PER_INCH, _LETTERS_OF_HANDLE = 15, 8
"""Of a legend."""
_GREY = "#808690"  # seen on white and on black


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of one metric of one suite.

    Args:
        name: For files.
        title: What it shows.
        png: For files, on white.
        svg: An `<svg>` element without a background, for pages of either colour.
    """

    name: str
    title: str
    png: bytes
    svg: str


def plots(results: Results) -> Iterator[Plot]:
    """Draw results.

    Args:
        results: What was measured.

    Yields:
        Bars for each suite and metric; a curve where systems were trained on different numbers of rows.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.suite, row.metric), []).append(row)
    for (suite, name), rows in groups.items():
        better = "higher" if metric(name).higher_is_better else "lower"
        title = f"{suite}: {name} ({better} is better)"
        bars = [row for row in rows if row.train_rows is None]
        if bars:
            yield _plot(f"{suite}.{name}", title, _bars, bars)
        sized = [row for row in rows if row.train_rows is not None]
        if len({row.train_rows for row in sized}) > 1:
            yield _plot(f"{suite}.{name}.data_size", f"{title}, by training rows", _curves, sized)


def _plot(name: str, title: str, draw: Callable[[Sequence[Row]], Figure], rows: Sequence[Row]) -> Plot:
    # Text as paths would be unreadable to a screen reader and four times as large.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = draw(rows)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=150)
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    element = svg.getvalue()[svg.getvalue().index("<svg") :]
    # The size comes from the page; several pictures of one page must not share the names of their parts.
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    tag = re.sub(r"\W", "_", name)
    element = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{tag}-", element)
    return Plot(re.sub(r"[^\w.@-]+", "_", name), title, png.getvalue(), element)


def _bars(rows: Sequence[Row]) -> Figure:
    systems = distinct(row.system for row in rows)
    ordered = sorted(rows, key=lambda row: row.language == AVERAGE)
    many_tasks = len({row.task for row in rows}) > 1
    names = distinct(_label(row, many_tasks=many_tasks) for row in ordered)
    figure, axes = _figure(width=max(5.0, 1.6 + len(names) * max(0.5, 0.16 * len(systems))))
    step = 0.8 / len(systems)
    for place, system in enumerate(systems):
        of_name: dict[str, list[Row]] = {}
        for row in ordered:
            if row.system == system:
                of_name.setdefault(_label(row, many_tasks=many_tasks), []).append(row)
        left = [names.index(name) + (place - (len(systems) - 1) / 2) * step for name in of_name]
        values, lows, highs = zip(*map(_mean, of_name.values()), strict=True)
        axes.bar(left, values, width=step * 0.92, label=system, color=_COLOURS[place % len(_COLOURS)])
        spread = [
            [max(value - low, 0.0) for value, low in zip(values, lows, strict=True)],
            [max(high - value, 0.0) for value, high in zip(values, highs, strict=True)],
        ]
        axes.errorbar(left, values, yerr=spread, fmt="none", ecolor=_GREY, elinewidth=1, capsize=1.5)
    turned = max(map(len, names)) * len(names) > 60
    axes.set_xticks(range(len(names)), names, rotation=45 if turned else 0, ha="right" if turned else "center")
    _finish(figure, axes, rows[0].metric)
    return figure


def _curves(rows: Sequence[Row]) -> Figure:
    figure, axes = _figure(width=6.0)
    many_tasks = len({row.task for row in rows}) > 1
    lines: dict[str, dict[int, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row.train_rows or 0):
        parts = [*([row.task] if many_tasks else []), row.system, row.language]
        lines.setdefault(" ".join(filter(None, parts)), {}).setdefault(row.train_rows or 0, []).append(row)
    for place, (line, found) in enumerate(lines.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        values, lows, highs = zip(*map(_mean, found.values()), strict=True)
        axes.plot([*found], values, marker="o", markersize=3.5, label=line, color=colour)
        axes.fill_between([*found], lows, highs, color=colour, alpha=0.15)
    axes.set_xscale("log")
    sizes = sorted({row.train_rows or 0 for row in rows})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training rows", color=_GREY)
    _finish(figure, axes, rows[0].metric)
    return figure


def _mean(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Several seeds: the mean of their values, within the widest of their intervals."""
    value = sum(row.value for row in rows) / len(rows)
    return value, min(row.low for row in rows), max(row.high for row in rows)


def _label(row: Row, *, many_tasks: bool) -> str:
    parts = [row.task] if many_tasks or not row.language else []
    return "\n".join([*parts, *([row.language] if row.language else [])])


def _figure(*, width: float) -> tuple[Figure, Axes]:
    # No pyplot: it keeps every figure of the process alive and picks a backend by the display.
    figure = Figure(figsize=(min(width, 16.0), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, name: str) -> None:
    axes.set_ylabel(name, color=_GREY)
    axes.tick_params(colors=_GREY, labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    columns = int(figure.get_figwidth() * _LETTERS_PER_INCH / (longest + _LETTERS_OF_HANDLE))
    legend = figure.legend(loc="outside upper left", ncols=min(max(columns, 1), 4), frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_color(_GREY)
