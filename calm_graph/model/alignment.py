"""Which augmenter tokens an anchor position may see: byte offsets and finality turned into one number per token.

Every augmenter token gets `known_at`, the index of the first anchor token after which its text is known. Visibility
then is one comparison, `known_at <= t`, for prompt and completion, for shared and foreign tokenizers, for training and
cached decoding alike. The last word of a text may still go on: it is either read when it is final, or at once and
again when it has changed; what stood for it until then is withdrawn, and visible only while `t < withdrawn_at`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from calm_graph.augmenters.pairs import NEVER
from calm_graph.declare.composition import OpenWords
from calm_graph.model.segments import SegmentStream
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.model.tokens import AnchorTokens, Tokens


class Reader(Protocol):
    """Turns anchor tokens into the tokens of one augmenter. Holds the rows' text state of one request."""

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """Read the sealed prompt (row by row: its real tokens, or the text given for it)."""

    def push(self, new: AnchorTokens) -> tuple[Tokens, torch.Tensor]:
        """Read completion tokens.

        Returns:
            The augmenter tokens that became known, and when the newest ones before them are withdrawn, int64 [B, R]:
            the newest that stands first, NEVER where none is.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows: row i becomes the old row `rows[i]`."""

    def copy(self) -> Reader:
        """A second reader that goes on from here on its own."""

    def join(self, other: Reader) -> None:
        """Add the rows of another reader of the same kind below these."""

    def drop_last(self, num_tokens: int) -> None:
        """Forget the last completion tokens of every row."""


class SharedReader:
    """Reads the anchor's own token ids: the augmenter has the same tokenizer.

    Args:
        streams: Whether the completion is read as well as the prompt.
        vocab_size: How many embeddings the augmenter has. Models of one tokenizer may round that up differently, so the
            anchor can generate ids, of no text, that the augmenter has no embedding for; they are not read.
    """

    def __init__(self, *, streams: bool, vocab_size: int | None = None) -> None:
        self._streams = streams
        self._vocab_size = NEVER if vocab_size is None else vocab_size

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """The prompt's ids; an augmenter position is known once the anchor has read the same token."""
        return self._tokens(prompt, is_prompt=True)

    def push(self, new: AnchorTokens) -> tuple[Tokens, torch.Tensor]:
        """The new ids, or nothing for an augmenter that reads the prompt only."""
        read = new if self._streams else new.where(torch.zeros_like(new.real_BT))
        return self._tokens(read, is_prompt=False), new.index_BT[:, :0]

    def select(self, rows: Sequence[int]) -> None:
        """Nothing to do: no state."""

    def copy(self) -> Reader:
        """Itself: no state."""
        return self

    def join(self, other: Reader) -> None:
        """Nothing to do: no state."""

    def drop_last(self, num_tokens: int) -> None:
        """Nothing to do: no state."""

    def _tokens(self, anchor: AnchorTokens, *, is_prompt: bool) -> Tokens:
        anchor = anchor.where(anchor.ids_BT < self._vocab_size)
        return Tokens(
            ids_BS=anchor.ids_BT.masked_fill(~anchor.real_BT, 0),
            real_BS=anchor.real_BT,
            known_at_BS=anchor.index_BT.masked_fill(~anchor.real_BT, NEVER),
            withdrawn_at_BS=torch.full_like(anchor.index_BT, NEVER),
            index_BS=anchor.index_BT,
            prompt_BS=torch.full_like(anchor.real_BT, is_prompt),
        ).compact()


@dataclass(slots=True)
class _Piece:
    """An augmenter token."""

    id: int
    known_at: int
    index: int
    is_prompt: bool = False
    withdrawn_at: int = NEVER


@dataclass(slots=True)
class _Row:
    """One row's completion.

    Args:
        ids: Anchor tokens read so far, to undo some.
        indices: Their places.
        text: The open text.
        standing: What was read of the text, without what was withdrawn, if open words are read.
        num_final: How many of those are final, after each anchor token.
    """

    ids: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    text: SegmentStream = field(default_factory=SegmentStream)
    standing: list[_Piece] = field(default_factory=list)
    num_final: list[int] = field(default_factory=list)

    def copy(self) -> _Row:
        return _Row([*self.ids], [*self.indices], self.text.copy(), [*self.standing], [*self.num_final])

    def without_last(self, num_tokens: int, table: TokenBytes) -> _Row:
        kept, end = _Row(), len(self.ids) - num_tokens
        for id, index in list(zip(self.ids, self.indices, strict=True))[:end]:
            kept.push(id, index, table)
        kept.num_final = self.num_final[:end]
        # What was withdrawn since is gone; the reader sees that it is missing when the word goes on.
        kept.standing = [piece for piece in self.standing if kept.indices and piece.known_at <= kept.indices[-1]]
        return kept

    def push(self, id: int, index: int, table: TokenBytes) -> list[str]:
        self.ids.append(id)
        self.indices.append(index)
        return self.text.push(table([id])[0])

    def follow(self, final: list[int], open_word: list[int], *, now: int) -> tuple[list[_Piece], list[_Piece]]:
        """Make what stands from the open word on these tokens; return what is new and what is withdrawn for it."""
        num_final = self.num_final[-1] if self.num_final else 0
        path = [*final, *open_word]
        old = self.standing[num_final:]
        same = next((at for at, (piece, id) in enumerate(zip(old, path, strict=False)) if piece.id != id), None)
        place = min(len(old), len(path)) if same is None else same
        new = [_Piece(id, now, now) for id in path[place:]]
        self.standing[num_final + place :] = new
        self.num_final.append(num_final + len(final))
        return new, old[place:]


class TextReader:
    """Reads the anchor's text with the augmenter's own tokenizer.

    Args:
        anchor_bytes: Bytes of the anchor's tokens.
        tokenizer: The augmenter's encoders.
        streams: Whether the completion is read as well as the prompt.
        template: Text around the prompt, with `{prompt}` where it goes.
        open_words: Whether a word is read before it has ended.
    """

    def __init__(
        self,
        *,
        anchor_bytes: TokenBytes,
        tokenizer: TextTokenizer,
        streams: bool,
        template: str | None,
        open_words: OpenWords = "wait",
    ) -> None:
        self._bytes, self._tokenizer, self._streams, self._template = anchor_bytes, tokenizer, streams, template
        self._open_words = open_words
        self._rows: list[_Row] = []

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """Encode each row's prompt whole; its tokens are known once the anchor has read their bytes."""
        self._rows = [_Row() for _ in texts]
        rows = [self._prompt(ids, text) for ids, text in zip(_real_ids(prompt), texts, strict=True)]
        return _padded(rows, prompt.ids_BT.device)

    def push(self, new: AnchorTokens) -> tuple[Tokens, torch.Tensor]:
        """Encode the segments that these completion tokens made final, and the open word if it is read, too."""
        device = new.ids_BT.device
        if not self._streams:
            return _padded([[] for _ in self._rows], device), new.index_BT[:, :0]
        read = self._read_open if self._open_words == "read" else self._read_final
        ids_per_row, indices_per_row = _real_ids(new), _real_ids(new, of=new.index_BT)
        found = [read(*row) for row in zip(self._rows, ids_per_row, indices_per_row, strict=True)]
        width = max((len(withdrawn) for _, withdrawn in found), default=0)
        at_BR = [[*withdrawn, *[NEVER] * (width - len(withdrawn))] for _, withdrawn in found]
        return (
            _padded([pieces for pieces, _ in found], device),
            torch.tensor(at_BR, dtype=torch.int64).reshape(len(found), width).to(device),
        )

    def _read_final(self, row: _Row, ids: list[int], indices: list[int]) -> tuple[list[_Piece], list[int]]:
        final = [
            (segment, known_at)
            for id, known_at in zip(ids, indices, strict=True)
            for segment in row.push(id, known_at, self._bytes)
        ]
        encoded = self._tokenizer.encode_segments([segment for segment, _ in final])
        return [
            _Piece(id, known_at, known_at)
            for segment_ids, (_, known_at) in zip(encoded, final, strict=True)
            for id in segment_ids
        ], []

    def _read_open(self, row: _Row, ids: list[int], indices: list[int]) -> tuple[list[_Piece], list[int]]:
        read = [(row.push(id, index, self._bytes), row.text.open) for id, index in zip(ids, indices, strict=True)]
        encoded = iter(self._tokenizer.encode_segments([each for final, last in read for each in (*final, last)]))
        pieces: list[_Piece] = []
        withdrawn: list[int] = []  # of tokens of earlier calls
        for (final, _), now in zip(read, indices, strict=True):
            final_ids = [id for _ in final for id in next(encoded)]
            new, old = row.follow(final_ids, next(encoded), now=now)
            for piece in reversed(old):
                if piece.known_at < indices[0]:
                    withdrawn.append(now)
                else:
                    piece.withdrawn_at = now
            pieces += new
        return pieces, withdrawn

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows; each copy gets a text of its own."""
        self._rows = [self._rows[place].copy() for place in rows]

    def copy(self) -> Reader:
        """A reader with copies of the rows."""
        copied = TextReader(
            anchor_bytes=self._bytes,
            tokenizer=self._tokenizer,
            streams=self._streams,
            template=self._template,
            open_words=self._open_words,
        )
        copied._rows = [row.copy() for row in self._rows]
        return copied

    def join(self, other: Reader) -> None:
        """Add the other's rows."""
        assert isinstance(other, TextReader)
        self._rows += other._rows

    def drop_last(self, num_tokens: int) -> None:
        """Read every row again without its last tokens."""
        self._rows = [row.without_last(num_tokens, self._bytes) for row in self._rows]

    def _prompt(self, anchor_ids: list[int], given: str | None) -> list[_Piece]:
        pieces = self._bytes.text(anchor_ids)
        anchor_text = b"".join(pieces).decode(errors="replace")
        text = anchor_text if given is None else given
        if not text and not self._streams:
            return []
        ids, ends = self._tokenizer.encode_prompt(text, template=self._template, goes_on=self._streams)
        last = len(anchor_ids) - 1  # before the first token, if the prompt is empty
        # A text given for the prompt stands somewhere inside the anchor's, or is aligned with its end only.
        start = len(anchor_text[: anchor_text.find(text)].encode()) if text in anchor_text else None
        if start is None:
            return [_Piece(id, last, last, is_prompt=True) for id in ids]
        anchor_ends: list[int] = []
        for piece in pieces:
            anchor_ends.append((anchor_ends[-1] if anchor_ends else 0) + len(piece))
        known = [min(bisect_left(anchor_ends, start + end), last) for end in ends]
        return [_Piece(id, known_at, known_at, is_prompt=True) for id, known_at in zip(ids, known, strict=True)]


def _real_ids(anchor: AnchorTokens, *, of: torch.Tensor | None = None) -> list[list[int]]:
    values, real = (anchor.ids_BT if of is None else of).tolist(), anchor.real_BT.tolist()
    return [[value for value, is_real in zip(*row, strict=True) if is_real] for row in zip(values, real, strict=True)]


def _padded(rows: list[list[_Piece]], device: torch.device) -> Tokens:
    width = max((len(row) for row in rows), default=0)
    padding = [0, NEVER, NEVER, 0, 0]
    filled = [
        [padding] * (width - len(row))
        + [[each.id, each.known_at, each.withdrawn_at, each.index, each.is_prompt] for each in row]
        for row in rows
    ]
    table_BS5 = torch.tensor(filled, dtype=torch.int64).reshape(len(rows), width, 5).to(device)
    ids_BS, known_at_BS, withdrawn_at_BS, index_BS, prompt_BS = table_BS5.unbind(-1)
    return Tokens(
        ids_BS=ids_BS,
        real_BS=known_at_BS != NEVER,
        known_at_BS=known_at_BS,
        withdrawn_at_BS=withdrawn_at_BS,
        index_BS=index_BS,
        prompt_BS=prompt_BS.bool(),
    )
