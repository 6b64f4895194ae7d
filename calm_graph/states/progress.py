"""What a person sees while samples are worked through: a bar on a terminal, plain lines elsewhere, on stderr."""

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

_LINE_EVERY_S = 5.0


def say(show: Show, message: str) -> None:
    """Write one line, unless nothing is to be shown."""
    if show != "none":
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(show: Show, *, done: int, total: int, label: str = "precompute") -> Iterator[Advance]:
    """Show how many samples are done.

    Args:
        show: `auto` is a bar on a terminal and lines elsewhere.
        done: Samples that an earlier run has written.
        total: All samples.
        label: What is done with them.

    Yields:
        To be called with the number of samples that were just done.
    """
    if show == "auto" and sys.stderr.isatty():
        columns = (TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda samples: bar.advance(task, samples)
        return
    said_s = time.monotonic()

    def advance(samples: int) -> None:
        nonlocal done, said_s
        done += samples
        if done == total or time.monotonic() - said_s > _LINE_EVERY_S:
            said_s = time.monotonic()
            say(show, f"{label} {done:,}/{total:,} samples")

    yield advance
