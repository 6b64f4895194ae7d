"""Which samples each step trains on: an order of batches that is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calm_graph.declare.settings import Order


class BatchOrder:
    """Which samples each step trains on: every sample once per epoch, batches of similar lengths, seeded.

    The order is a function of the seed and the step alone, so a resumed run needs no more than its step number.

    Args:
        lengths: Tokens of each sample.
        batch_size: Samples per batch; an epoch's last batch may be smaller.
        seed: Another seed is another order.
        pool_batches: Samples are sorted by length within pools of so many batches; 1 draws batches of any lengths.
        order: `given` takes the samples as they come, and neither the seed nor the pools matter.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        pool_batches: int = 50,
        order: Order = "shuffled",
    ) -> None:
        self.lengths = tuple(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.pool_batches = pool_batches
        self.order = order
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """How many steps see every sample once."""
        return -(-len(self.lengths) // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Return the indices of the samples of a step (0-based)."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if self.order == "given":
            first = place * self.batch_size
            return list(range(first, min(first + self.batch_size, len(self.lengths))))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._arrange(epoch))
        return self._epoch[1][place]

    def _arrange(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        # Sorting within pools, not over the whole epoch, keeps batches different from epoch to epoch.
        pool = self.batch_size * self.pool_batches
        batches: list[list[int]] = []
        for first in range(0, len(shuffled), pool):
            near = sorted(shuffled[first : first + pool], key=lambda index: self.lengths[index])
            batches += [near[i : i + self.batch_size] for i in range(0, len(near), self.batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
