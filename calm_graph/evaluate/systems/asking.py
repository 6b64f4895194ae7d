"""Ask a system what is not known yet: each piece is kept before the next is asked, and a stop is heard in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calm_graph.evaluate.systems.base import Decoding, System
from calm_graph.evaluate.systems.predictions import Predictions
from calm_graph.interrupts import StopRequest
from calm_graph.progress import Show, progress

_ANSWERS_AT_ONCE, _SCORES_AT_ONCE = 64, 256
"""Rows between two writes: what a stopped run loses at most."""

_Asked = tuple[str, ...]


class StoppedError(Exception):
    """Somebody asked the run to stop."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How systems are asked.

    Args:
        predictions: Folder of what was answered; an answer that is there already is used.
        show: How progress is shown.
        stop: Looked at after every answer.
    """

    predictions: Path
    show: Show = "none"
    stop: StopRequest = field(default_factory=StopRequest)

    def answers(
        self, system: System, prompts: Sequence[str], decoding: Decoding, *, names: Sequence[str]
    ) -> list[list[str]]:
        """Continue prompts.

        Args:
            system: Who is asked.
            prompts: Texts.
            decoding: How they are continued.
            names: What the file of answers is called after.

        Returns:
            As `System.generate`.

        Raises:
            StoppedError: The run was asked to stop.
            EvaluationError: As `System.generate`.
        """
        kept = Predictions(self.predictions, names=names, identity=system.identity, kind="answers", decoding=decoding)

        def ask(asked: Sequence[_Asked], done: Callable[[int], None]) -> Sequence[Any]:
            return system.generate([prompt for (prompt,) in asked], decoding, done=done)

        return self._asked(kept, [(prompt,) for prompt in prompts], ask, at_once=_ANSWERS_AT_ONCE)

    def nats(self, system: System, pairs: Sequence[tuple[str, str]], *, names: Sequence[str]) -> list[float]:
        """Tell how likely completions are.

        Args:
            system: Who is asked.
            pairs: Prompts and what follows each.
            names: What the file of scores is called after.

        Returns:
            As `System.score`.

        Raises:
            StoppedError: The run was asked to stop.
            EvaluationError: As `System.score`.
        """
        kept = Predictions(self.predictions, names=names, identity=system.identity, kind="nats")

        def ask(asked: Sequence[_Asked], done: Callable[[int], None]) -> Sequence[Any]:
            return system.score([pair[0] for pair in asked], [pair[1] for pair in asked], done=done)

        return self._asked(kept, pairs, ask, at_once=_SCORES_AT_ONCE)

    def _asked(
        self,
        kept: Predictions,
        asked: Sequence[_Asked],
        ask: Callable[[Sequence[_Asked], Callable[[int], None]], Sequence[Any]],
        *,
        at_once: int,
    ) -> list[Any]:
        """Ask in pieces of similar lengths."""
        new = sorted({each for each in asked if each not in kept}, key=lambda each: (-sum(map(len, each)), each))
        if new:
            label = kept.path.name.rsplit(".", 2)[0]
            with progress(self.show, label=label, total=len(asked), done=len(asked) - len(new)) as advance:

                def done(index: int) -> None:
                    advance(1)
                    if self.stop.requested:
                        raise StoppedError

                for first in range(0, len(new), at_once):
                    piece = new[first : first + at_once]
                    kept.add(list(zip(piece, ask(piece, done), strict=True)), shown=_rest)
        return [kept[each] for each in asked]


def _rest(asked: Sequence[str]) -> Mapping[str, str]:
    return {"completion": asked[1]} if len(asked) > 1 else {}
