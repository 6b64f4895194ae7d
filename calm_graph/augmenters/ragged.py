"""A KV cache whose rows may grow by different numbers of tokens at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from calm_graph.augmenters.pairs import NEVER, withdrawn


def right_aligned(real_BS: torch.Tensor) -> torch.Tensor | None:
    """Order of slots that moves each row's real slots to its right end, keeping their order.

    Args:
        real_BS: bool, True where a slot holds a real token.

    Returns:
        int64 [B, S] to gather with, or None if every row is right-aligned already.
    """
    order_BS = real_BS.to(torch.uint8).argsort(dim=1, stable=True)
    identity_S = torch.arange(real_BS.shape[1], device=real_BS.device)
    moved = ((order_BS != identity_S) & real_BS.gather(1, order_BS)).any()
    return order_BS if bool(moved) else None


class RaggedCache(DynamicCache):
    """KV cache in which every row's tokens stand right-aligned and without gaps.

    A decoding step may add three tokens to one row and none to the next. Padding inside a row would stretch sliding
    windows and ALiBi distances, so after each append the rows are moved right until they have no gap: to the model
    this is an ordinary left-padded batch. Sliding-window layers keep their whole past (their mask does the sliding),
    because dropping by slot would drop different numbers of real tokens from different rows.

    Attributes:
        real_BL: bool, True where a slot holds a real token.
        span_BL2: int64, anchor positions from which the slot's token is known, and from which it is withdrawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.real_BL: torch.Tensor | None = None
        self.span_BL2: torch.Tensor | None = None
        self._order_BL: torch.Tensor | None = None

    def append(
        self, real_BS: torch.Tensor, known_at_BS: torch.Tensor, withdrawn_at_BS: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Announce the tokens that the next forward will add; call before it.

        Args:
            real_BS: bool, left-padded.
            known_at_BS: int64.
            withdrawn_at_BS: int64; None: none of them is.

        Returns:
            The attention mask over old and new slots, bool [B, L + S], and the new tokens' positions, int64 [B, S]; of
            use only where `span_BL2` withdraws nothing.
        """
        if withdrawn_at_BS is None:
            withdrawn_at_BS = torch.full_like(known_at_BS, NEVER)
        else:
            self._drop_withdrawn(known_at_BS.masked_fill(~real_BS, NEVER).amin(dim=1))
        span_BL2 = torch.stack([known_at_BS, withdrawn_at_BS], dim=-1)
        old_real_BL = real_BS.new_zeros(real_BS.shape[0], 0) if self.real_BL is None else self.real_BL
        old_span_BL2 = span_BL2[:, :0] if self.span_BL2 is None else self.span_BL2
        real_BL = torch.cat([old_real_BL, real_BS], dim=1)
        span_BL2 = torch.cat([old_span_BL2, span_BL2], dim=1)
        positions_BS = old_real_BL.sum(dim=1, keepdim=True) + real_BS.cumsum(dim=1) - 1
        # Rows that all grow stay as they stand, which is every step of an anchor's decoding.
        self._order_BL = None if bool(real_BS.all()) else right_aligned(real_BL)
        if self._order_BL is not None:
            real_BL, span_BL2 = real_BL.gather(1, self._order_BL), _slots(span_BL2, self._order_BL)
        self.real_BL, self.span_BL2 = real_BL, span_BL2
        return real_BL, positions_BS.clamp(min=0)

    def withdraw(self, at_BR: torch.Tensor) -> None:
        """Withdraw the newest tokens; they are dropped once no token before that is to come.

        Args:
            at_BR: int64, when: of the newest token that is not withdrawn yet first; NEVER where none is meant.
        """
        if self.real_BL is not None and self.span_BL2 is not None:
            known_at_BL, withdrawn_at_BL = self.span_BL2.unbind(-1)
            self.span_BL2 = torch.stack([known_at_BL, withdrawn(self.real_BL, withdrawn_at_BL, at_BR)], dim=-1)

    def _drop_withdrawn(self, now_B: torch.Tensor) -> None:
        if self.real_BL is None or self.span_BL2 is None:
            return
        self.real_BL = self.real_BL & ((self.span_BL2[..., 1] > now_B[:, None]) | (self.span_BL2[..., 1] == NEVER))
        self._align()

    def _align(self) -> None:
        """Close the gaps that dropped tokens left."""
        assert self.real_BL is not None and self.span_BL2 is not None
        is_left = self.real_BL.any(dim=0)
        tail = int(is_left.flip(0).to(torch.uint8).argmax()) if bool(is_left.any()) else len(is_left)
        if tail:  # what all rows drop takes no copy
            end = len(is_left) - tail
            self.real_BL, self.span_BL2 = self.real_BL[:, :end], self.span_BL2[:, :end]
            self._map(lambda states: states[:, :, :end])
        order_BL = right_aligned(self.real_BL)
        if order_BL is not None:
            self.real_BL, self.span_BL2 = self.real_BL.gather(1, order_BL), _slots(self.span_BL2, order_BL)
            self._map(lambda states: _gathered(states, order_BL))
        self.trim()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, N, S, H] of one layer and return all of them, right-aligned."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self._order_BL is not None:
            keys, values = _gathered(keys, self._order_BL), _gathered(values, self._order_BL)
            layer = self.layers[layer_idx]
            assert isinstance(layer, DynamicLayer)
            layer.keys, layer.values = keys, values
        return keys, values

    def keys_values(self) -> list[torch.Tensor]:
        """Keys and values of each layer in turn, float [B, N, L, H]; none before the first forward."""
        found = []
        for layer in self.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            found += [layer.keys, layer.values]
        return found

    def replace(self, states: Sequence[torch.Tensor]) -> None:
        """Take keys and values of old and new slots together, as a runtime that joins them by itself returns them.

        Args:
            states: As in `keys_values`, in the order of slots that `append` was given.
        """
        order_BL = self._order_BL
        if not self.layers:
            for keys, values in zip(states[::2], states[1::2], strict=True):
                new = DynamicLayer()
                new.lazy_initialization(keys, values)
                self.layers.append(new)
        for layer, keys, values in zip(self.layers, states[::2], states[1::2], strict=True):
            assert isinstance(layer, DynamicLayer)
            layer.keys, layer.values = (
                each if order_BL is None else _gathered(each, order_BL) for each in (keys, values)
            )

    def trim(self) -> None:
        """Drop leading slots that are padding in every row; call after the forward."""
        assert self.real_BL is not None and self.span_BL2 is not None
        lead = int((~self.real_BL).to(torch.uint8).cumprod(dim=1).sum(dim=1).min())
        if lead:
            self.real_BL, self.span_BL2 = self.real_BL[:, lead:], self.span_BL2[:, lead:]
            self._map(lambda states: states[:, :, lead:])

    def crop_after(self, last_B: torch.Tensor) -> None:
        """Forget the tokens that were not known yet at anchor position `last_B`, int64 [B], or are withdrawn."""
        if self.real_BL is None or self.span_BL2 is None:
            return
        known_at_BL, withdrawn_at_BL = self.span_BL2.unbind(-1)
        self.real_BL = self.real_BL & (known_at_BL <= last_B[:, None]) & (withdrawn_at_BL == NEVER)
        self._align()

    def select(self, rows_B: torch.Tensor) -> None:
        """Keep (and repeat) rows: row i becomes the old row `rows_B[i]`."""
        if self.real_BL is None or self.span_BL2 is None:
            return
        self.real_BL, self.span_BL2 = self.real_BL[rows_B], self.span_BL2[rows_B]
        self._map(lambda states: states[rows_B.to(states.device)])

    def copy(self, *, num_slots: int | None = None) -> RaggedCache:
        """A second cache that goes on from here on its own.

        Args:
            num_slots: Its first so many slots; None: all.
        """
        copied = RaggedCache()
        if self.real_BL is not None and self.span_BL2 is not None:
            copied.real_BL, copied.span_BL2 = self.real_BL[:, :num_slots], self.span_BL2[:, :num_slots]
            copied.replace([states[:, :, :num_slots] for states in self.keys_values()])
        return copied

    def join(self, other: RaggedCache, *, num_rows: int, num_new: int) -> None:
        """Add the rows of another cache of the same model below these.

        Args:
            other: It is used up.
            num_rows: Rows here, which a cache that no token was added to does not know.
            num_new: Rows there.
        """
        if other.real_BL is None and self.real_BL is None:
            return
        above, below = self._or_empty(num_rows, like=other), other._or_empty(num_new, like=self)
        assert above.real_BL is not None and below.real_BL is not None
        width = max(above.real_BL.shape[1], below.real_BL.shape[1])
        self.real_BL = _stacked(above.real_BL, below.real_BL, width)
        self.span_BL2 = _stacked(above.span_BL2, below.span_BL2, width)
        states = [
            _stacked(upper, lower, width, dim=2)
            for upper, lower in zip(above.keys_values(), below.keys_values(), strict=True)
        ]
        self._order_BL = None
        self.replace(states)

    def _or_empty(self, num_rows: int, *, like: RaggedCache) -> RaggedCache:
        if self.real_BL is not None:
            return self
        assert like.real_BL is not None and like.span_BL2 is not None
        empty = RaggedCache()
        empty.real_BL, empty.span_BL2 = (
            each.new_zeros(num_rows, *each.shape[1:]) for each in (like.real_BL, like.span_BL2)
        )
        empty.replace([states.new_zeros(num_rows, *states.shape[1:]) for states in like.keys_values()])
        return empty

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for layer in self.layers:
            assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
            layer.keys, layer.values = change(layer.keys), change(layer.values)


def _slots(span_BL2: torch.Tensor, order_BL: torch.Tensor) -> torch.Tensor:
    return span_BL2.gather(1, order_BL[:, :, None].expand(-1, -1, 2))


def _gathered(states_BNLH: torch.Tensor, order_BL: torch.Tensor) -> torch.Tensor:
    num_rows, num_heads, num_slots, width = states_BNLH.shape
    # Whole vectors are copied: `gather` looks each number up by itself, and took ten times as long on a CPU.
    first_BN = torch.arange(num_rows * num_heads, device=order_BL.device).view(num_rows, num_heads) * num_slots
    index = (first_BN[:, :, None] + order_BL[:, None, :]).flatten().to(states_BNLH.device)
    return states_BNLH.reshape(-1, width).index_select(0, index).view(num_rows, num_heads, order_BL.shape[1], width)


def _stacked(above: torch.Tensor | None, below: torch.Tensor | None, width: int, *, dim: int = 1) -> torch.Tensor:
    """Rows over rows, each with zeros (no token) before it, so that dimension `dim` is `width` long."""
    assert above is not None and below is not None
    shape = [above.shape[0] + below.shape[0], *above.shape[1:]]
    shape[dim] = width
    stacked = above.new_zeros(shape)
    stacked[: above.shape[0]].narrow(dim, width - above.shape[dim], above.shape[dim]).copy_(above)
    stacked[above.shape[0] :].narrow(dim, width - below.shape[dim], below.shape[dim]).copy_(below)
    return stacked
