"""What a person sees while long work goes on: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Literal["auto", "plain", "none"]
Advance = Callable[[int], None]

LINE_EVERY_S = 5.0


def say(show: Show, message: str) -> None:
    """Write one line, unless nothing is to be shown."""
    if show != "none":
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(
    show: Show,
    *,
    label: str,
    total: int | None,
    done: int = 0,
    unit: str = "samples",
    passing: bool = False,
) -> Iterator[Advance]:
    """Show how much is done.

    Args:
        show: `auto` is a bar on a terminal and lines elsewhere.
        label: What is done.
        total: How much there is; None: nobody knows.
        done: What an earlier run has done.
        unit: What is counted.
        passing: Nothing of it stays: the bar goes away at its end, and lines are for what takes a while only.

    Yields:
        To be called with the number that was just done.
    """
    if show == "auto" and sys.stderr.isatty():
        columns = (TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=passing) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda number: bar.advance(task, number)
        return
    said_s = time.monotonic()

    def advance(number: int) -> None:
        nonlocal done, said_s
        done += number
        if (done == total and not passing) or time.monotonic() - said_s > LINE_EVERY_S:
            said_s = time.monotonic()
            say(show, f"{label} {done:,}{'' if total is None else f'/{total:,}'} {unit}")

    yield advance
