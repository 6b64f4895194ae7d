"""All that a composed model remembers of a batch in progress, besides the anchor's own keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.model.alignment import Reader
from calm_graph.model.stored import StoredStates
from calm_graph.model.tokens import NEVER, Tokens

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class EdgeContext:
    """Keys and values that one model offers to another, and from when on each is visible.

    Attributes:
        threshold_BS: int64; the token is visible to positions whose clock is at least this. NEVER on padding.
        known_at_BS: int64, anchor index from which the token is known.
        index_BS: int64, anchor index where the token's text stands.
        layers: Attachment key -> keys and values, float [B, N, S, H].
    """

    threshold_BS: torch.Tensor
    known_at_BS: torch.Tensor
    index_BS: torch.Tensor
    layers: dict[str, KeysValues]

    def then(self, later: EdgeContext) -> EdgeContext:
        """These tokens followed by `later` ones."""
        return EdgeContext(
            threshold_BS=torch.cat([self.threshold_BS, later.threshold_BS], dim=1),
            known_at_BS=torch.cat([self.known_at_BS, later.known_at_BS], dim=1),
            index_BS=torch.cat([self.index_BS, later.index_BS], dim=1),
            layers={
                key: (torch.cat([keys, later.layers[key][0]], dim=2), torch.cat([values, later.layers[key][1]], dim=2))
                for key, (keys, values) in self.layers.items()
            },
        )

    def select(self, rows_B: torch.Tensor) -> EdgeContext:
        """Row i becomes the old row `rows_B[i]`."""
        return EdgeContext(
            threshold_BS=_rows(self.threshold_BS, rows_B),
            known_at_BS=_rows(self.known_at_BS, rows_B),
            index_BS=_rows(self.index_BS, rows_B),
            layers={key: (_rows(keys, rows_B), _rows(values, rows_B)) for key, (keys, values) in self.layers.items()},
        )


@dataclass(slots=True)
class Request:
    """The text, states and contexts of one batch.

    Attributes:
        readers: Run name -> its reader, with the rows' text.
        caches: Run name -> keys and values of the augmenter; empty where nothing is kept between calls.
        contexts: (source run, target run) -> what the target's attachments attend to.
        waiting: Run name -> tokens that the augmenter has yet to run over: a prompt just read, or all that came while
            it was switched off.
        prompt_lengths_B: int64, real anchor tokens that are the prompt; None until the prompt is read.
        last_index_B: int64, index of the newest anchor token.
        stored: Run name -> states that are given, so that no augmenter runs.
        kept: Run name -> tokens and states of each run; with it nothing is offered to the anchor, which does not run.
    """

    readers: Mapping[str, Reader]
    caches: Mapping[str, RaggedCache] = field(default_factory=dict)
    contexts: dict[tuple[str, str], EdgeContext] = field(default_factory=dict)
    waiting: dict[str, Tokens] = field(default_factory=dict)
    prompt_lengths_B: torch.Tensor | None = None
    last_index_B: torch.Tensor | None = None
    stored: Mapping[str, StoredStates] | None = None
    kept: dict[str, tuple[Tokens, Mapping[int, torch.Tensor]]] | None = None

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
        for context in self.contexts.values():
            unknown_BS = context.known_at_BS > last_B.to(context.known_at_BS.device)[:, None]
            context.threshold_BS = context.threshold_BS.masked_fill(unknown_BS, NEVER)
        self.waiting = {run: tokens.known_by(last_B) for run, tokens in self.waiting.items()}


def _rows(tensor: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
    return tensor[rows_B.to(tensor.device)]
