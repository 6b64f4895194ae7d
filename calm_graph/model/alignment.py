"""Which augmenter tokens an anchor position may see: byte offsets and finality turned into one number per token.

Every augmenter token gets `known_at`, the index of the first anchor token after which its text is known and final.
Visibility then is one comparison, `known_at <= t`, for prompt and completion, for shared and foreign tokenizers, for
training and cached decoding alike.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from calm_graph.model.segments import SegmentStream
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.model.tokens import NEVER, AnchorTokens, Tokens


class Reader(Protocol):
    """Turns anchor tokens into the tokens of one augmenter. Holds the rows' text state of one request."""

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """Read the sealed prompt (row by row: its real tokens, or the text given for it)."""

    def push(self, new: AnchorTokens) -> Tokens:
        """Read completion tokens and return the augmenter tokens that became final."""

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

    def push(self, new: AnchorTokens) -> Tokens:
        """The new ids, or nothing for an augmenter that reads the prompt only."""
        return self._tokens(new if self._streams else new.where(torch.zeros_like(new.real_BT)), is_prompt=False)

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
            index_BS=anchor.index_BT,
            prompt_BS=torch.full_like(anchor.real_BT, is_prompt),
        ).compact()


@dataclass(slots=True)
class _Row:
    """One row's completion: the ids read so far (to undo) and the open text."""

    ids: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    text: SegmentStream = field(default_factory=SegmentStream)

    def copy(self) -> _Row:
        return _Row(ids=list(self.ids), indices=list(self.indices), text=self.text.copy())

    def without_last(self, num_tokens: int, table: TokenBytes) -> _Row:
        kept = _Row()
        for id, index in list(zip(self.ids, self.indices, strict=True))[: len(self.ids) - num_tokens]:
            kept.push(id, index, table)
        return kept

    def push(self, id: int, index: int, table: TokenBytes) -> list[str]:
        self.ids.append(id)
        self.indices.append(index)
        return self.text.push(table([id])[0])


_Piece = tuple[int, int, int, bool]  # id, known_at, index, is_prompt


class TextReader:
    """Reads the anchor's text with the augmenter's own tokenizer.

    Args:
        anchor_bytes: Bytes of the anchor's tokens.
        tokenizer: The augmenter's encoders.
        streams: Whether the completion is read as well as the prompt.
        template: Text around the prompt, with `{prompt}` where it goes.
    """

    def __init__(
        self, *, anchor_bytes: TokenBytes, tokenizer: TextTokenizer, streams: bool, template: str | None
    ) -> None:
        self._bytes, self._tokenizer, self._streams, self._template = anchor_bytes, tokenizer, streams, template
        self._rows: list[_Row] = []

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """Encode each row's prompt whole; its tokens are known once the anchor has read their bytes."""
        self._rows = [_Row() for _ in texts]
        rows = [self._prompt(ids, text) for ids, text in zip(_real_ids(prompt), texts, strict=True)]
        return _padded(rows, prompt.ids_BT.device)

    def push(self, new: AnchorTokens) -> Tokens:
        """Encode the segments that these completion tokens made final."""
        if not self._streams:
            return _padded([[] for _ in self._rows], new.ids_BT.device)
        ids_per_row, indices_per_row = _real_ids(new), _real_ids(new, of=new.index_BT)
        rows: list[list[_Piece]] = []
        for row, ids, indices in zip(self._rows, ids_per_row, indices_per_row, strict=True):
            final = [
                (segment, known_at)
                for id, known_at in zip(ids, indices, strict=True)
                for segment in row.push(id, known_at, self._bytes)
            ]
            encodings = self._tokenizer.continuation.encode_batch_fast(
                [segment for segment, _ in final], add_special_tokens=False
            )
            rows.append(
                [
                    (id, known_at, known_at, False)
                    for encoding, (_, known_at) in zip(encodings, final, strict=True)
                    for id in encoding.ids
                ]
            )
        return _padded(rows, new.ids_BT.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows; each copy gets a text of its own."""
        self._rows = [self._rows[place].copy() for place in rows]

    def copy(self) -> Reader:
        """A reader with copies of the rows."""
        copied = TextReader(
            anchor_bytes=self._bytes, tokenizer=self._tokenizer, streams=self._streams, template=self._template
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
            return [(id, last, last, True) for id in ids]
        anchor_ends: list[int] = []
        for piece in pieces:
            anchor_ends.append((anchor_ends[-1] if anchor_ends else 0) + len(piece))
        known = [min(bisect_left(anchor_ends, start + end), last) for end in ends]
        return [(id, known_at, known_at, True) for id, known_at in zip(ids, known, strict=True)]


def _real_ids(anchor: AnchorTokens, *, of: torch.Tensor | None = None) -> list[list[int]]:
    values, real = (anchor.ids_BT if of is None else of).tolist(), anchor.real_BT.tolist()
    return [[value for value, is_real in zip(*row, strict=True) if is_real] for row in zip(values, real, strict=True)]


def _padded(rows: list[list[_Piece]], device: torch.device) -> Tokens:
    width = max((len(row) for row in rows), default=0)
    filled = [[(0, NEVER, 0, False)] * (width - len(row)) + row for row in rows]
    table_BS4 = torch.tensor(filled, dtype=torch.int64).reshape(len(rows), width, 4).to(device)
    ids_BS, known_at_BS, index_BS, prompt_BS = table_BS4.unbind(-1)
    return Tokens(
        ids_BS=ids_BS,
        real_BS=known_at_BS != NEVER,
        known_at_BS=known_at_BS,
        index_BS=index_BS,
        prompt_BS=prompt_BS.bool(),
    )
