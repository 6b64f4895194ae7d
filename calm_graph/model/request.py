"""All that a composed model remembers of a batch in progress, besides the anchor's own keys and values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from calm_graph.augmenters.pairs import NEVER, earlier_withdrawn, withdrawn
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.model.alignment import Reader
from calm_graph.model.stored import StoredStates
from calm_graph.model.tokens import Tokens

KeysValues = tuple[torch.Tensor, torch.Tensor]
_Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class EdgeContext:
    """Keys and values that one model offers to another, and from when on each is visible.

    Attributes:
        threshold_BS: int64; the token is visible to positions whose clock is at least this. NEVER on padding.
        known_at_BS: int64, anchor index from which the token is known.
        withdrawn_at_BS: int64, anchor index from which it is not visible any more.
        index_BS: int64, anchor index where the token's text stands.
        layers: Attachment key -> keys and values, float [B, N, S, H].
    """

    threshold_BS: torch.Tensor
    known_at_BS: torch.Tensor
    withdrawn_at_BS: torch.Tensor
    index_BS: torch.Tensor
    layers: dict[str, KeysValues]

    def then(self, later: EdgeContext) -> EdgeContext:
        """These tokens followed by `later` ones."""
        return self._joined(later, tokens_dim=1, states_dim=2)

    def join(self, below: EdgeContext) -> EdgeContext:
        """These rows with those of `below` under them; columns that are padding in every row are dropped."""
        width = max(each.threshold_BS.shape[1] for each in (self, below))
        return self._widened(width)._joined(below._widened(width), tokens_dim=0, states_dim=0).compact()

    def empty(self, num_rows: int) -> EdgeContext:
        """Rows of the same edge that nothing was offered to."""
        nothing = self._each(lambda tokens_BS: tokens_BS[:, :0], lambda states_BNSH: states_BNSH[:, :, :0])
        return nothing.select(torch.zeros(num_rows, dtype=torch.int64))

    def compact(self) -> EdgeContext:
        """The same tokens right-aligned, as narrow as the longest row."""
        real_BS = self.threshold_BS != NEVER
        width = int(real_BS.sum(dim=1).max()) if real_BS.numel() else 0
        if width == real_BS.shape[1]:
            return self
        order_BS = real_BS.to(torch.uint8).argsort(dim=1, stable=True)[:, real_BS.shape[1] - width :]

        def gathered(states_BNSH: torch.Tensor) -> torch.Tensor:
            index = order_BS.to(states_BNSH.device)[:, None, :, None]
            return states_BNSH.gather(2, index.expand(-1, states_BNSH.shape[1], -1, states_BNSH.shape[3]))

        return self._each(lambda tokens_BS: tokens_BS.gather(1, order_BS), gathered)

    def select(self, rows_B: torch.Tensor) -> EdgeContext:
        """Row i becomes the old row `rows_B[i]`."""
        return self._each(lambda tokens_BS: _rows(tokens_BS, rows_B), lambda states_BNSH: _rows(states_BNSH, rows_B))

    def visible(self, clock_BT: torch.Tensor) -> torch.Tensor:
        """What positions with these clocks, int64 [B, T], see: bool [B, T, S], on their device."""
        from_BS, until_BS = self.threshold_BS.to(clock_BT.device), self.withdrawn_at_BS.to(clock_BT.device)
        return (from_BS[:, None, :] <= clock_BT[:, :, None]) & (clock_BT[:, :, None] < until_BS[:, None, :])

    def withdraw(self, at_BR: torch.Tensor) -> EdgeContext:
        """Withdraw the newest tokens: see `pairs.withdrawn`."""
        return replace(self, withdrawn_at_BS=withdrawn(self.threshold_BS != NEVER, self.withdrawn_at_BS, at_BR))

    def forget_after(self, last_B: torch.Tensor) -> EdgeContext:
        """Hide what was not known at anchor index `last_B`, int64 [B], and what was withdrawn after it."""
        last_B1 = last_B.to(self.known_at_BS.device)[:, None]
        return replace(
            self,
            threshold_BS=self.threshold_BS.masked_fill(self.known_at_BS > last_B1, NEVER),
            withdrawn_at_BS=earlier_withdrawn(self.withdrawn_at_BS, last_B1),
        )

    def _each(self, tokens: _Change, states: _Change) -> EdgeContext:
        """Change all that is told of tokens, [B, S], and all keys and values, [B, N, S, H]."""
        return EdgeContext(
            threshold_BS=tokens(self.threshold_BS),
            known_at_BS=tokens(self.known_at_BS),
            withdrawn_at_BS=tokens(self.withdrawn_at_BS),
            index_BS=tokens(self.index_BS),
            layers={key: (states(keys), states(values)) for key, (keys, values) in self.layers.items()},
        )

    def _joined(self, other: EdgeContext, *, tokens_dim: int, states_dim: int) -> EdgeContext:
        return EdgeContext(
            threshold_BS=torch.cat([self.threshold_BS, other.threshold_BS], dim=tokens_dim),
            known_at_BS=torch.cat([self.known_at_BS, other.known_at_BS], dim=tokens_dim),
            withdrawn_at_BS=torch.cat([self.withdrawn_at_BS, other.withdrawn_at_BS], dim=tokens_dim),
            index_BS=torch.cat([self.index_BS, other.index_BS], dim=tokens_dim),
            layers={
                key: (
                    torch.cat([keys, other.layers[key][0]], dim=states_dim),
                    torch.cat([values, other.layers[key][1]], dim=states_dim),
                )
                for key, (keys, values) in self.layers.items()
            },
        )

    def _widened(self, width: int) -> EdgeContext:
        missing = width - self.threshold_BS.shape[1]
        if not missing:
            return self
        wide = self._each(
            lambda tokens_BS: F.pad(tokens_BS, (missing, 0), value=NEVER),
            lambda states_BNSH: F.pad(states_BNSH, (0, 0, missing, 0)),
        )
        return replace(wide, index_BS=F.pad(self.index_BS, (missing, 0)))  # distances must stay numbers


@dataclass(frozen=True, slots=True)
class Pending:
    """A prompt that is being read somewhere else.

    Attributes:
        tokens: Of the augmenter.
        states: Layer -> float [B, S, C], to come.
        began: When it was asked, by `time.perf_counter`.
    """

    tokens: Tokens
    states: Future[dict[int, torch.Tensor]]
    began: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Request:
    """The text, states and contexts of one batch.

    Attributes:
        readers: Run name -> its reader, with the rows' text.
        caches: Run name -> keys and values of the augmenter; empty where nothing is kept between calls.
        contexts: (source run, target run) -> what the target's attachments attend to.
        waiting: Run name -> tokens that the augmenter has yet to run over: a prompt just read, or all that came while
            it was switched off.
        pending: Run name -> prompt that a service was asked about.
        skipped: Runs that are left out, because their service does not answer.
        prompt_lengths_B: int64, real anchor tokens that are the prompt; None until the prompt is read.
        last_index_B: int64, index of the newest anchor token.
        stored: Run name -> states that are given, so that no augmenter runs.
        kept: Run name -> tokens and states of each run; with it nothing is offered to the anchor, which does not run.
        closes_prompt: Whether a token of the prompt is visible only where its text has been read, whatever the
            composition says: the prompt's own words are to be predicted.
    """

    readers: Mapping[str, Reader]
    caches: dict[str, RaggedCache] = field(default_factory=dict)
    contexts: dict[tuple[str, str], EdgeContext] = field(default_factory=dict)
    waiting: dict[str, Tokens] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    prompt_lengths_B: torch.Tensor | None = None
    last_index_B: torch.Tensor | None = None
    stored: Mapping[str, StoredStates] | None = None
    kept: dict[str, tuple[Tokens, Mapping[int, torch.Tensor]]] | None = None
    closes_prompt: bool = False

    def select(self, rows_B: torch.Tensor) -> None:
        """Keep (and repeat) rows, as beam search does: row i becomes the old row `rows_B[i]`."""
        if self.prompt_lengths_B is None or self.last_index_B is None:
            return
        self.prompt_lengths_B, self.last_index_B = self.prompt_lengths_B[rows_B], self.last_index_B[rows_B]
        rows: Sequence[int] = rows_B.tolist()
        for reader in self.readers.values():
            reader.select(rows)
        for cache in self.caches.values():
            cache.select(rows_B)
        self.contexts = {edge: context.select(rows_B) for edge, context in self.contexts.items()}
        self.waiting = {run: tokens.select(rows_B) for run, tokens in self.waiting.items()}

    def copy(self) -> Request:
        """A second request that goes on from here on its own; tensors, which are never changed in place, are shared."""
        assert not self.pending, "nobody copies a request whose prompt is being read"
        return replace(
            self,
            readers={name: reader.copy() for name, reader in self.readers.items()},
            caches={name: cache.copy() for name, cache in self.caches.items()},
            contexts=dict(self.contexts),
            waiting=dict(self.waiting),
            skipped=set(self.skipped),
        )

    def join(self, other: Request) -> None:
        """Add the rows of another request of the same composition below these; the other is used up.

        Both have read their prompts, and the same augmenters are on in both.
        """
        assert self.prompt_lengths_B is not None and self.last_index_B is not None
        assert other.prompt_lengths_B is not None and other.last_index_B is not None
        num_rows, num_new = len(self.prompt_lengths_B), len(other.prompt_lengths_B)
        self.contexts = {
            edge: _or_empty(self.contexts.get(edge), num_rows, like=other.contexts.get(edge)).join(
                _or_empty(other.contexts.get(edge), num_new, like=self.contexts.get(edge))
            )
            for edge in {**self.contexts, **other.contexts}
        }
        self.waiting = {
            run: (self.waiting[run] if run in self.waiting else other.waiting[run].nothing(num_rows)).join(
                other.waiting[run] if run in other.waiting else self.waiting[run].nothing(num_new)
            )
            for run in {**self.waiting, **other.waiting}
        }
        for name, cache in self.caches.items():
            cache.join(other.caches[name], num_rows=num_rows, num_new=num_new)
        for name, reader in self.readers.items():
            reader.join(other.readers[name])
        self.prompt_lengths_B = torch.cat([self.prompt_lengths_B, other.prompt_lengths_B])
        self.last_index_B = torch.cat([self.last_index_B, other.last_index_B])

    def withdraw(self, run: str, at_BR: torch.Tensor) -> None:
        """Withdraw the newest tokens of a run, wherever they are by now.

        Args:
            run: Its name.
            at_BR: int64, when: of the newest token that stands first; NEVER where none is meant.
        """
        if at_BR.shape[1] == 0:
            return
        if run in self.waiting:
            self.waiting[run], at_BR = self.waiting[run].withdraw(at_BR)
        if run in self.caches:
            self.caches[run].withdraw(at_BR)
        for edge, context in self.contexts.items():
            if edge[0] == run:
                self.contexts[edge] = context.withdraw(at_BR)

    def check_drop(self, num_tokens: int) -> None:
        """Refuse to forget more tokens than the completion has.

        Raises:
            ValueError: Some row has fewer.
        """
        if self.prompt_lengths_B is None or self.last_index_B is None:
            return
        if bool((self.last_index_B - num_tokens < self.prompt_lengths_B - 1).any()):
            raise ValueError(f"cannot crop {num_tokens} tokens: they reach into the sealed prompt")

    def drop_last(self, num_tokens: int) -> None:
        """Forget the newest anchor tokens of every row and all that was known through them only."""
        if self.last_index_B is None or num_tokens == 0:
            return
        last_B = self.last_index_B - num_tokens
        self.last_index_B = last_B
        for reader in self.readers.values():
            reader.drop_last(num_tokens)
        for cache in self.caches.values():
            cache.crop_after(last_B)
        self.contexts = {edge: context.forget_after(last_B) for edge, context in self.contexts.items()}
        self.waiting = {run: tokens.known_by(last_B) for run, tokens in self.waiting.items()}


def _or_empty(context: EdgeContext | None, num_rows: int, *, like: EdgeContext | None) -> EdgeContext:
    if context is not None:
        return context
    assert like is not None
    return like.empty(num_rows)


def _rows(tensor: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    return tensor[rows_B.to(tensor.device)]
