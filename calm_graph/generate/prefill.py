"""One prompt being read, piece by piece, so that a long one does not make the answers under way wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.generate.batch import Anchor, Group, contributions
from calm_graph.model.tokens import AnchorTokens
from calm_graph.model.writes import Writes, measured_writes


@dataclass(slots=True)
class Prefill:
    """A prompt, and how much of it was read.

    Args:
        anchor: What reads it.
        ids: Of the prompt and of what is there of the answer already.
        group: The augmenters that are on, one row; None if none is. Its request has begun.
        wants_all: Whether the logits of every position are wanted, not only the last one's.
        num_read: Anchor tokens read so far.
        cache: Their keys and values.
        logits_TV: float, of the positions read last; [1, V] at the end of the prompt unless all are wanted.
        contributions: Of each augmenter at the last position.
    """

    anchor: Anchor
    ids: Sequence[int]
    group: Group | None
    wants_all: bool = False
    num_read: int = 0
    cache: RaggedCache = field(default_factory=RaggedCache)
    logits_TV: torch.Tensor | None = None
    contributions: dict[str, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether all of it was read."""
        return self.num_read == len(self.ids)

    @property
    def is_waiting(self) -> bool:
        """Whether a service has been asked about the prompt and has not answered."""
        return self.group is not None and bool(self.group.request.pending)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Augmenters that are left out, because their service does not answer."""
        return () if self.group is None else tuple(sorted(self.group.request.skipped))

    @property
    def num_left(self) -> int:
        """Anchor tokens that are yet to be read."""
        return len(self.ids) - self.num_read

    def start(self) -> None:
        """Ask services about the prompt; they answer while others are at work.

        Raises:
            InputError: The prompt is longer than an augmenter's context.
        """
        if self.group is not None:
            with self.group.scaled():
                self.group.graph.start_reads(self.group.request)

    def drop(self) -> None:
        """Ask no more."""
        if self.group is not None:
            for pending in self.group.request.pending.values():
                pending.states.cancel()

    def advance(self, num_tokens: int, *, measure: bool) -> int:
        """Read at most so many tokens, of one augmenter or of the anchor.

        Augmenters come first: where all of the prompt is visible, the anchor's first token sees their last one.

        Args:
            num_tokens: The most.
            measure: Whether to measure what augmenters write at the last position.

        Returns:
            Tokens that were read; 0 if all there is to do is to wait for a service.

        Raises:
            InputError: The prompt is longer than an augmenter's context.
            AugmenterError: A service refuses, or does not answer and the composition cannot do without.
        """
        if self.group is not None:
            self.group.take_reads()
            with self.group.scaled():
                if num_ahead := self.group.graph.read_ahead(self.group.request, num_tokens):
                    return num_ahead
            if self.is_waiting:
                return 0
        first, last = self.num_read, min(self.num_read + num_tokens, len(self.ids))
        device = self.anchor.device
        ids_BT = torch.tensor([self.ids[first:last]], device=device)
        tokens = AnchorTokens(
            ids_BT=ids_BT,
            real_BT=torch.ones_like(ids_BT, dtype=torch.bool),
            index_BT=torch.arange(first, last, device=device)[None],
        )
        ends = last == len(self.ids)
        columns = slice(None) if self.wants_all else slice(-1, None) if ends else slice(0, 0)
        measured = Writes(last_position=True)
        writes = {} if self.group is None else self.group.push(tokens)
        if measure and ends and self.group is not None:
            with measured_writes(measured):
                self.logits_TV = self.anchor.logits(tokens, cache=self.cache, writes=writes, columns=columns)
            self.contributions = contributions(self.group, measured)[0]
        else:
            self.logits_TV = self.anchor.logits(tokens, cache=self.cache, writes=writes, columns=columns)
        self.num_read = last
        return last - first
