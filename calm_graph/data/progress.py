"""What a person sees while a large source is read: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Show = Literal["auto", "plain", "none"]

LINE_EVERY_S = 10.0


@contextmanager
def counting(name: str, *, total: int | None, show: Show) -> Iterator[Callable[[int], None]]:
    """Show how many rows are read.

    Args:
        name: Of the source.
        total: How many there are; None: nobody knows.
        show: A bar on a terminal and lines elsewhere (`auto`), lines (`plain`), or nothing (`none`).

    Yields:
        What to call with the number of rows read so far.
    """
    if show == "auto" and sys.stderr.isatty():
        columns = (
            TextColumn("read {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(name, total=total)
            yield lambda num_rows: progress.update(task, completed=num_rows)
        return
    began = last = time.monotonic()

    def line(num_rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if show != "none" and now - last >= LINE_EVERY_S:
            last = now
            of = "" if total is None else f" of {total:,}"
            rate = num_rows / (now - began)
            print(f"read {name}: {num_rows:,}{of} rows, {rate:,.0f} rows/s", file=sys.stderr, flush=True)

    yield line
