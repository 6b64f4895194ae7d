"""An answer's text, piece by piece: whole characters only, and nothing of a text that stops it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from calm_graph.model.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token made final.

    Args:
        text: To hand on.
        stop: The stop text that ended the answer, if one did.
    """

    text: str
    stop: str | None = None


class AnswerText:
    """Turns an answer's tokens into text.

    Args:
        table: Bytes of the anchor's tokens.
        stop: Texts that end the answer.
        include_stop: Whether the stop text is part of it.
    """

    def __init__(self, table: TokenBytes, *, stop: Sequence[str] = (), include_stop: bool = False) -> None:
        self._table, self._stop, self._include_stop = table, tuple(stop), include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, id: int, *, may_stop: bool = True) -> Piece:
        """Add a token; an answer that is too short yet may not stop."""
        return self._take(self._decoder.decode(self._table([id])[0]), self._stop if may_stop else ())

    def end(self) -> str:
        """Return what was held back: the answer has ended otherwise."""
        held, self._held = self._held, ""
        return held + self._decoder.decode(b"", final=True)

    def _take(self, new: str, stops: Sequence[str]) -> Piece:
        text = self._held + new
        self._held = ""
        found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda pair: pair[0])
            return Piece(text=text[: place + len(stop)] if self._include_stop else text[:place], stop=stop)
        length = max((_overlap(text, stop) for stop in stops), default=0)
        cut = len(text) - length
        self._held = text[cut:]
        return Piece(text=text[:cut])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
