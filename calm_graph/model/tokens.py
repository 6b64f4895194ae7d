"""Tokens of the anchor and of an augmenter in one call: which are real, where they stand, from when they are known."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional as F

from calm_graph.augmenters.pairs import NEVER, earlier_withdrawn, withdrawn

ALWAYS = -1

_PADDING = {"known_at_BS": NEVER, "withdrawn_at_BS": NEVER}


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
        known_at_BS: int64, anchor index from which the token's text is known; NEVER on padding.
        withdrawn_at_BS: int64, anchor index from which its text turned out to go on, so that other tokens stand for it;
            NEVER for a token that is final.
        index_BS: int64, anchor index where its text stands (what rotary positions turn by).
        prompt_BS: bool, True if the token belongs to the sealed prompt.
    """

    ids_BS: torch.Tensor
    real_BS: torch.Tensor
    known_at_BS: torch.Tensor
    withdrawn_at_BS: torch.Tensor
    index_BS: torch.Tensor
    prompt_BS: torch.Tensor

    @classmethod
    def always_known(cls, real_BS: torch.Tensor) -> Tokens:
        """Places of an input that is no text, such as an image's patches; bool [B, S], False on padding."""
        zeros_BS = torch.zeros_like(real_BS, dtype=torch.int64)
        return cls(
            ids_BS=zeros_BS,
            real_BS=real_BS,
            known_at_BS=zeros_BS.masked_fill(real_BS, ALWAYS).masked_fill(~real_BS, NEVER),
            withdrawn_at_BS=zeros_BS + NEVER,
            index_BS=zeros_BS,
            prompt_BS=real_BS,
        )

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

    def join(self, below: Tokens) -> Tokens:
        """These rows with those of `below` under them."""
        width = max(len(self), len(below))

        def stacked(name: str) -> torch.Tensor:
            filler = _PADDING.get(name, 0)
            parts = [F.pad(getattr(each, name), (width - len(each), 0), value=filler) for each in (self, below)]
            return torch.cat(parts)

        return Tokens(**{item.name: stacked(item.name) for item in fields(self)})

    def nothing(self, num_rows: int) -> Tokens:
        """Rows without any token."""
        return self.split(0)[0].select(torch.zeros(num_rows, dtype=torch.int64))

    def split(self, num_tokens: int) -> tuple[Tokens, Tokens]:
        """The first columns, and the others."""
        first, others = (
            Tokens(**{item.name: getattr(self, item.name)[:, cut] for item in fields(self)})
            for cut in (slice(None, num_tokens), slice(num_tokens, None))
        )
        return first, others

    def select(self, rows_B: torch.Tensor) -> Tokens:
        """Row i becomes the old row `rows_B[i]`."""
        return Tokens(**{item.name: getattr(self, item.name)[rows_B] for item in fields(self)})

    def known_by(self, last_B: torch.Tensor) -> Tokens:
        """Only the tokens known at anchor index `last_B`, int64 [B]."""
        real_BS = self.real_BS & (self.known_at_BS <= last_B[:, None])
        return replace(
            self,
            real_BS=real_BS,
            known_at_BS=self.known_at_BS.masked_fill(~real_BS, NEVER),
            withdrawn_at_BS=earlier_withdrawn(self.withdrawn_at_BS, last_B[:, None]),
        ).compact()

    def withdraw(self, at_BR: torch.Tensor) -> tuple[Tokens, torch.Tensor]:
        """Withdraw the newest of these tokens.

        Args:
            at_BR: int64, when: of the newest token that is not withdrawn yet first; NEVER where none is meant.

        Returns:
            The tokens, and what is left to withdraw of tokens before them, in the same form.
        """
        if at_BR.shape[1] == 0:
            return self, at_BR
        taken_B = (self.real_BS & (self.withdrawn_at_BS == NEVER)).sum(dim=1, keepdim=True)
        left_BR = F.pad(at_BR, (0, len(self)), value=NEVER)
        left_BR = left_BR.gather(1, taken_B + torch.arange(at_BR.shape[1], device=at_BR.device))
        return replace(self, withdrawn_at_BS=withdrawn(self.real_BS, self.withdrawn_at_BS, at_BR)), left_BR

    def thresholds(self, *, prompt_is_open: bool) -> torch.Tensor:
        """Smallest clock that sees each token; with an open prompt every position sees all of the prompt."""
        if not prompt_is_open:
            return self.known_at_BS
        return self.known_at_BS.masked_fill(self.prompt_BS & self.real_BS, ALWAYS)
