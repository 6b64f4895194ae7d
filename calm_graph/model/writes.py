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
            scalars on its device, or one a row of the last position only. Padding takes part in both.
        last_position: Measure that instead of everything.
    """

    squares: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    last_position: bool = False

    def shares(self) -> dict[str, float]:
        """Return the norm of what each attachment added, relative to the norm of the stream before it."""
        return {key: float((added / stream).sqrt()) for key, (added, stream) in self.squares.items()}

    def row_shares(self) -> dict[str, list[float]]:
        """Return the same of each row's last position."""
        return {key: (added_B / stream_B).sqrt().tolist() for key, (added_B, stream_B) in self.squares.items()}


# Private to a thread and put back afterwards, like every state of a call.
_MEASURED: ContextVar[Writes | None] = ContextVar("calm_graph_writes", default=None)


@contextmanager
def measured_writes(writes: Writes | None = None) -> Iterator[Writes]:
    """Measure all that attachments add inside the `with`.

    Args:
        writes: What is measured; None starts anew.

    Yields:
        The same; it grows.
    """
    writes = writes or Writes()
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
    if writes.last_position:
        rows = (states[:, -1].detach().double().square().sum(dim=-1) for states in (added_BTD, stream_BTD))
        writes.squares[key] = next(rows), next(rows)
        return
    sums = [states.detach().double().square().sum() for states in (added_BTD, stream_BTD)]
    before = writes.squares.get(key)
    writes.squares[key] = (sums[0] + before[0], sums[1] + before[1]) if before else (sums[0], sums[1])
