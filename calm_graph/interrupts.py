"""Ctrl-C and SIGTERM end a run between two steps, not inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextmanager
def stop_on_signals(stop: StopRequest | None = None) -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once, as usual.

    Only the main thread hears signals; elsewhere nothing changes.

    Args:
        stop: What is asked for; None makes a new request.

    Yields:
        The request.
    """
    stop = stop or StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    with handlers_kept(signal.SIGINT, signal.SIGTERM) as numbers:
        for number in numbers:
            signal.signal(number, ask)
        yield stop


@contextmanager
def handlers_kept(*numbers: signal.Signals) -> Iterator[tuple[signal.Signals, ...]]:
    """Put the handlers of these signals back afterwards, whoever replaced them meanwhile; in the main thread only."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield numbers
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
