"""Which augmenter tokens an anchor position may see: byte offsets and finality turned into one number per token.

Every augmenter token gets `known_at`, the index of the first anchor token after which its text is known and final.
Visibility then is one comparison, `known_at <= t`, for prompt and completion, for shared and foreign tokenizers, for
training and cached decoding alike.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Protocol

import torch
from tokenizers import Encoding, Tokenizer

from calm_graph.errors import InputError
from calm_graph.model.segments import SegmentStream
from calm_graph.model.token_bytes import TokenBytes, specification_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALWAYS = -1
NEVER = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorTokens:
    """Anchor tokens of one call.

    Attributes:
        ids_BT: int64.
        real_BT: bool, False on padding.
        index_BT: int64, place of each real token among the row's real tokens, from 0.
    """

    ids_BT: torch.Tensor
    real_BT: torch.Tensor
    index_BT: torch.Tensor

    def where(self, keep_BT: torch.Tensor) -> AnchorTokens:
        """The same columns with only the tokens in `keep_BT` (bool) counted as real."""
        return AnchorTokens(ids_BT=self.ids_BT, real_BT=self.real_BT & keep_BT, index_BT=self.index_BT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """New tokens of one augmenter, left-padded.

    Attributes:
        ids_BS: int64.
        real_BS: bool, False on padding.
        known_at_BS: int64, anchor index from which the token's text is known and final; NEVER on padding.
        index_BS: int64, anchor index where its text stands (what rotary positions turn by).
        prompt_BS: bool, True if the token belongs to the sealed prompt.
    """

    ids_BS: torch.Tensor
    real_BS: torch.Tensor
    known_at_BS: torch.Tensor
    index_BS: torch.Tensor
    prompt_BS: torch.Tensor

    def __len__(self) -> int:
        return self.ids_BS.shape[1]

    def then(self, later: Tokens) -> Tokens:
        """These tokens followed by `later` ones, compacted to the left-padded form."""
        joined = {
            item.name: torch.cat([getattr(self, item.name), getattr(later, item.name)], dim=1) for item in fields(self)
        }
        return Tokens(**joined).compact()

    def compact(self) -> Tokens:
        """The same tokens with each row's real ones at its right end and no column that is all padding."""
        width = int(self.real_BS.sum(dim=1).max()) if self.real_BS.numel() else 0
        order_BS = self.real_BS.to(torch.uint8).argsort(dim=1, stable=True)[:, self.real_BS.shape[1] - width :]
        return Tokens(**{item.name: getattr(self, item.name).gather(1, order_BS) for item in fields(self)})

    def select(self, rows_B: torch.Tensor) -> Tokens:
        """Row i becomes the old row `rows_B[i]`."""
        return Tokens(**{item.name: getattr(self, item.name)[rows_B] for item in fields(self)})

    def known_by(self, last_B: torch.Tensor) -> Tokens:
        """Only the tokens known at anchor index `last_B`, int64 [B]."""
        real_BS = self.real_BS & (self.known_at_BS <= last_B[:, None])
        return replace(self, real_BS=real_BS, known_at_BS=self.known_at_BS.masked_fill(~real_BS, NEVER)).compact()

    def thresholds(self, *, prompt_is_open: bool) -> torch.Tensor:
        """Smallest clock that sees each token; with an open prompt every position sees all of the prompt."""
        if not prompt_is_open:
            return self.known_at_BS
        return self.known_at_BS.masked_fill(self.prompt_BS & self.real_BS, ALWAYS)


class Reader(Protocol):
    """Turns anchor tokens into the tokens of one augmenter. Holds the rows' text state of one request."""

    def begin(self, prompt: AnchorTokens, texts: Sequence[str | None]) -> Tokens:
        """Read the sealed prompt (row by row: its real tokens, or the text given for it)."""

    def push(self, new: AnchorTokens) -> Tokens:
        """Read completion tokens and return the augmenter tokens that became final."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows: row i becomes the old row `rows[i]`."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizer:
    """An augmenter's tokenizer as three encoders: the prompt, what a template puts around it, and what follows.

    Text of users is encoded as text even where it spells a control token; a template may spell them on purpose.
    """

    prompt: Tokenizer
    template: Tokenizer
    continuation: Tokenizer

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextTokenizer:
        """Build the encoders from a fast tokenizer.

        Raises:
            InputError: If it has no fast backend.
        """
        specification = specification_of(tokenizer) | {"truncation": None, "padding": None}
        prompt = Tokenizer.from_str(json.dumps(specification))
        prompt.encode_special_tokens = True
        specification = _without_first_space(specification)
        template, continuation = (Tokenizer.from_str(json.dumps(specification)) for _ in range(2))
        continuation.encode_special_tokens = True
        return cls(prompt=prompt, template=template, continuation=continuation)

    def encode_prompt(self, text: str, *, template: str | None, goes_on: bool) -> tuple[list[int], list[int]]:
        """Encode a prompt whole, with the control tokens that the tokenizer puts around a text.

        Args:
            text: The prompt.
            template: Text around it, with `{prompt}` where it goes.
            goes_on: The completion will follow, so control tokens that close a text are left out.

        Returns:
            Token ids and, for each, the byte of `text` at which it ends: 0 for what stands before the text.
        """
        encoding = self.prompt.encode(text)
        byte_at = [0]
        for char in text:
            byte_at.append(byte_at[-1] + len(char.encode()))
        lead, num_closing = self._around(encoding)
        tail = len(encoding.ids) - num_closing
        before, after = (self.template.encode(part, add_special_tokens=False).ids for part in _around(template))
        closing = [] if goes_on else encoding.ids[tail:]
        ids = [*encoding.ids[:lead], *before, *encoding.ids[lead:tail], *after, *closing]
        own_ends = [byte_at[end] for _, end in encoding.offsets[lead:tail]]
        return ids, [0] * (lead + len(before)) + own_ends + [byte_at[-1]] * (len(after) + len(closing))

    def _around(self, encoding: Encoding) -> tuple[int, int]:
        """Count the control tokens before and after the text's own tokens."""
        for shown in (encoding, self.prompt.encode("a")):  # a text without tokens does not show which of them close it
            is_own = [not special for special in shown.special_tokens_mask]
            if any(is_own):
                return is_own.index(True), is_own[::-1].index(True)
        return len(encoding.ids), 0


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


def _around(template: str | None) -> tuple[str, str]:
    before, _, after = (template or "{prompt}").partition("{prompt}")
    return before, after


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


def _without_first_space(specification: dict[str, object]) -> dict[str, object]:
    """The same tokenizer for text in the middle: without the space that some put before the first word."""

    def clean(node: object) -> object:
        if isinstance(node, list):
            return [clean(item) for item in node if not (isinstance(item, dict) and item.get("type") == "Prepend")]
        if isinstance(node, dict):
            node = {key: clean(value) for key, value in node.items()}
            if node.get("type") == "Metaspace":
                node["prepend_scheme"] = "never"
            if node.get("type") == "ByteLevel" and "add_prefix_space" in node:
                node["add_prefix_space"] = False
        return node

    cleaned = dict(specification)
    for part in ("normalizer", "pre_tokenizer"):
        node = cleaned.get(part)
        is_prepend = isinstance(node, dict) and node.get("type") == "Prepend"
        cleaned[part] = None if is_prepend else clean(node)
    return cleaned


def check_ids(ids_BT: torch.Tensor, vocab_size: int) -> None:
    """Refuse token ids that the anchor has no embedding for.

    Raises:
        InputError: Naming the place, the id and the range.
    """
    wrong_BT = (ids_BT < 0) | (ids_BT >= vocab_size)
    if bool(wrong_BT.any()):
        row, column = (int(x) for x in wrong_BT.nonzero()[0])
        raise InputError(
            f"input_ids[{row}, {column}]: got {int(ids_BT[row, column])}, but the anchor's vocabulary has ids "
            f"0..{vocab_size - 1}; tokenise with the anchor's own tokenizer"
        )
