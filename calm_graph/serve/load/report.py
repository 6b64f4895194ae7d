"""What loads measured, to look at: progress while they run, a table, a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from calm_graph.plan.tables import print_rows
from calm_graph.serve.load.parts import Load, LoadResult, Reply

_HEADER = ("load", "answered", "tokens/s", "requests/s", "first token p50", "p95", "p99", "next p50", "p95", "p99", "")
_BLUE, _ORANGE, _GREY = "#2f6db5", "#d9772b", "#8a8f98"


@contextmanager
def watching() -> Iterator[Callable[[Load], Callable[[Reply], None]]]:
    """Show requests as they end, on stderr: a bar for each load on a terminal, a line for each elsewhere.

    Yields:
        What to call with a load that begins; it returns what to call with each reply.
    """
    if not sys.stderr.isatty():

        def lines(load: Load) -> Callable[[Reply], None]:
            print(f"{load.name}: {_length(load)}", file=sys.stderr, flush=True)
            return lambda _: None

        yield lines
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bars(load: Load) -> Callable[[Reply], None]:
            task = progress.add_task(load.name, total=load.num_requests, failed="")
            num_failed = 0

            def show(reply: Reply) -> None:
                nonlocal num_failed
                num_failed += reply.error is not None
                progress.update(task, advance=1, failed=f"{num_failed} failed" if num_failed else "")

            return show

        yield bars


def print_table(results: Sequence[LoadResult]) -> None:
    """Print a line for each load: with colours on a terminal, as plain text elsewhere.

    Args:
        results: Of the loads.
    """
    rows = [_row(result) for result in results]
    print_rows(_HEADER, rows, styles=["red" if result.errors else None for result in results])


def plot(results: Sequence[LoadResult], path: Path) -> None:
    """Draw throughput, time to the first token and time between tokens against the load.

    Args:
        results: Of loads of one kind, so many together or so many a second.
        path: A PNG, replaced as a whole.
    """
    by_rate = results[0].load.rate is not None
    results = sorted(results, key=lambda result: _amount(result.load))
    amounts = [_amount(result.load) for result in results]
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    throughput, first, gap = figure.subplots(1, 3)
    throughput.plot(amounts, [result.tokens_per_s for result in results], color=_BLUE, marker="o", markersize=3.5)
    throughput.set_ylabel("output tokens/s")
    for axes, label, of in (
        (first, "time to first token (s)", LoadResult.first_token_s),
        (gap, "time between tokens (s)", LoadResult.gap_s),
    ):
        for percent, colour in ((50, _BLUE), (95, _ORANGE), (99, _GREY)):
            values = [of(result, percent) for result in results]
            axes.plot(amounts, values, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=f"p{percent}")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)
    for axes in (throughput, first, gap):
        axes.set_xlabel("requests/s offered" if by_rate else "requests under way")
        axes.set_xscale("log", base=2)
        axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    scratch = path.with_name(f".{path.name}.tmp")
    figure.savefig(scratch, format="png")
    os.replace(scratch, path)


def _amount(load: Load) -> float:
    return float(load.concurrency if load.rate is None else load.rate)  # type: ignore[arg-type]


def _length(load: Load) -> str:
    if load.num_requests is None:
        return f"{load.duration_s:g} s"
    return f"{load.num_requests} requests"


def _row(result: LoadResult) -> tuple[str, ...]:
    notes = [f"{count} x {code}" for code, count in result.errors.items()]
    if not result.is_whole:
        notes.insert(0, "interrupted")
    return (
        result.load.name,
        f"{len(result.answered)}/{len(result.replies)}",
        f"{result.tokens_per_s:,.1f}",
        f"{result.requests_per_s:,.2f}",
        *(_milliseconds(result.first_token_s(percent)) for percent in (50, 95, 99)),
        *(_milliseconds(result.gap_s(percent)) for percent in (50, 95, 99)),
        ", ".join(notes),
    )


def _milliseconds(seconds: float) -> str:
    return "-" if seconds != seconds else f"{1000 * seconds:,.1f} ms"
