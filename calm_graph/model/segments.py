"""Cut growing text into segments whose tokens later text can no longer change."""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass, field

MAX_SEGMENT_CHARS = 48
"""A segment is closed at this length, so that scripts without spaces are not held back for a whole sentence."""


def is_word(char: str) -> bool:
    """Whether `char` is a letter, a digit or a mark (marks belong to the letter before them)."""
    return unicodedata.category(char)[0] in "LNM"


def is_boundary(left: str, right: str) -> bool:
    """Whether a segment ends between two neighbouring characters.

    The pre-tokenisers in use (GPT-2, GPT-4, Qwen, Llama, Gemma, BERT) all cut here as well: after a word before
    anything else, and after punctuation before a space. They may cut in more places; that happens inside a segment.
    """
    if is_word(left):
        return not is_word(right)
    return not left.isspace() and right.isspace() and right not in "\r\n"


@dataclass(slots=True)
class SegmentStream:
    """The text of one row's completion as it grows.

    A segment is final as soon as the first character after it is known: the rule looks at two neighbours and at the
    segment's own length only, so however the bytes are cut into pieces, the same segments come out.
    """

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _open: list[str] = field(default_factory=list)

    def copy(self) -> SegmentStream:
        """A second stream that goes on from here on its own."""
        twin = SegmentStream(_open=list(self._open))
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    @property
    def open(self) -> str:
        """The segment that may still go on; characters of which bytes are missing are not in it."""
        return "".join(self._open)

    def push(self, data: bytes) -> list[str]:
        """Add bytes (characters may be cut anywhere) and return the segments that became final, in order."""
        final: list[str] = []
        for char in self._decoder.decode(data):
            if self._open and (is_boundary(self._open[-1], char) or len(self._open) >= MAX_SEGMENT_CHARS):
                final.append("".join(self._open))
                self._open.clear()
            self._open.append(char)
        return final
