"""How long each augmenter ran, measured while somebody asks for it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from calm_graph.model.tokens import Tokens


@dataclass(frozen=True, slots=True)
class RunTimes:
    """What was measured, run by run.

    Attributes:
        seconds: Until the call returned; a GPU may still be at work then.
        num_tokens: Real tokens that were run.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    num_tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))


# Private to a thread and put back afterwards, like every state of a call.
_MEASURED: ContextVar[RunTimes | None] = ContextVar("calm_graph_run_times", default=None)


@contextmanager
def measured_runs(times: RunTimes) -> Iterator[None]:
    """Measure all runs of augmenters inside the `with`.

    Args:
        times: Where what is measured is added.

    Yields:
        Nothing.
    """
    token = _MEASURED.set(times)
    try:
        yield
    finally:
        _MEASURED.reset(token)


def note_run(name: str, tokens: Tokens, *, began: float) -> None:
    """Add a run that ends now to the measurement that is going on, if one is.

    Args:
        name: Of the run.
        tokens: That were run.
        began: When it began, by `time.perf_counter`.
    """
    if (times := _MEASURED.get()) is not None:
        times.seconds[name] += time.perf_counter() - began
        times.num_tokens[name] += int(tokens.real_BS.sum())


@contextmanager
def timed_run(name: str, tokens: Tokens) -> Iterator[None]:
    """Add the time inside the `with` to the measurement that is going on, if one is."""
    began = time.perf_counter()
    yield
    note_run(name, tokens, began=began)
