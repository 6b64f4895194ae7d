"""How much each attachment writes into the stream, measured while somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Writes:
    """What was measured, attachment by attachment.

    Attributes:
        squares: Attachment key -> sums of squares of what it added and of the stream it was added to, both float64
            scalars on its device. Padding takes part in both.
    """

    squares: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def shares(self) -> dict[str, float]:
        """Return the norm of what each attachment added, relative to the norm of the stream before it."""
        return {key: float((added / stream).sqrt()) for key, (added, stream) in self.squares.items()}


# Private to a thread and put back afterwards, like every state of a call.
_MEASURED: ContextVar[Writes | None] = ContextVar("calm_graph_writes", default=None)


@contextmanager
def measured_writes() -> Iterator[Writes]:
    """Measure all that attachments add inside the `with`.

    Yields:
        What is measured; it grows.
    """
    writes = Writes()
    token = _MEASURED.set(writes)
    try:
        yield writes
    finally:
        _MEASURED.reset(token)


def note_write(key: str, added_BTD: torch.Tensor, stream_BTD: torch.Tensor) -> None:
    """Add what an attachment did to the measurement that is going on, if one is."""
    writes = _MEASURED.get()
    if writes is None:
        return
    sums = [states.detach().double().square().sum() for states in (added_BTD, stream_BTD)]
    before = writes.squares.get(key)
    writes.squares[key] = (sums[0] + before[0], sums[1] + before[1]) if before else (sums[0], sums[1])
