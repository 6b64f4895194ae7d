"""Which samples each step trains on: an order of batches that is a function of the seed and the step alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from calm_graph.declare.settings import Order


class BatchOrder:
    """Which samples each step trains on: every sample once per epoch, batches of similar lengths, seeded.

    The order is a function of the seed and the step alone, so a resumed run needs no more than its step number, and any
    number of workers can share out the same step.

    Args:
        lengths: Tokens of each sample.
        batch_size: Samples per batch; an epoch's last batch may be smaller.
        tokens_per_batch: Positions per batch, padding included, instead of a number of samples; a longer sample is a
            batch of its own. Epochs then differ in their number of batches.
        seed: Another seed is another order.
        pool_batches: Samples are sorted by length within pools of so many batches; 1 draws batches of any lengths.
        order: `given` takes the samples as they come, and neither the seed nor the pools matter.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        *,
        batch_size: int,
        seed: int,
        pool_batches: int = 50,
        tokens_per_batch: int | None = None,
        order: Order = "shuffled",
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.pool_batches = pool_batches
        self.order = order
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None
        self._first_steps = [0]

    def batch(self, step: int) -> list[int]:
        """Return the indices of the samples of a step (0-based), the shortest sample first."""
        epoch, place = self._find(step)
        indices: list[int] = self._batches(epoch)[place].tolist()
        return sorted(indices, key=self.lengths.__getitem__)

    def epoch(self, step: int) -> float:
        """Return how many times the data has been seen before a step."""
        epoch, place = self._find(step)
        return epoch + place / len(self._batches(epoch))

    def _find(self, step: int) -> tuple[int, int]:
        """Return the step's epoch and its place in it."""
        if self.tokens_per_batch is None:
            return divmod(step, -(-len(self.lengths) // self.batch_size))
        # How many batches a budget makes of an epoch is known only from arranging it, so the earlier ones are, too.
        while self._first_steps[-1] <= step:
            self._first_steps.append(self._first_steps[-1] + len(self._batches(len(self._first_steps) - 1)))
        epoch = bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._arrange(epoch))
        return self._epoch[1]

    def _arrange(self, epoch: int) -> list[NDArray[np.int64]]:
        if self.order == "given":
            in_order = np.arange(len(self.lengths))
            return split(in_order, self.lengths, batch_size=self.batch_size, tokens_per_batch=self.tokens_per_batch)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        if self.pool_batches > 1:
            # Sorting within pools, not over the whole epoch, keeps batches different from epoch to epoch.
            pool = self._samples_per_batch() * self.pool_batches
            pools = [order[first : first + pool] for first in range(0, len(order), pool)]
            near = [each[np.argsort(self.lengths[each], kind="stable")] for each in pools]
            if self.tokens_per_batch is not None:
                # A batch may lie across two pools; with every second pool turned round, their lengths meet.
                near[1::2] = [each[::-1] for each in near[1::2]]
            order = np.concatenate(near)
        batches = split(order, self.lengths, batch_size=self.batch_size, tokens_per_batch=self.tokens_per_batch)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _samples_per_batch(self) -> int:
        if self.tokens_per_batch is None:
            return self.batch_size
        return max(1, int(self.tokens_per_batch / self.lengths.mean()))


def split(
    order: NDArray[np.int64], lengths: NDArray[np.integer], *, batch_size: int, tokens_per_batch: int | None = None
) -> list[NDArray[np.int64]]:
    """Split samples into batches, in their order.

    Args:
        order: Sample indices.
        lengths: Tokens of each sample of the data, by index.
        batch_size: Samples per batch.
        tokens_per_batch: Positions per batch, padding included, instead.

    Returns:
        The batches; each is as large as it may be, and a sample above `tokens_per_batch` is alone.
    """
    if tokens_per_batch is None:
        return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    batches = []
    first = 0
    while first < len(order):
        candidates = order[first : first + max(1, tokens_per_batch // lengths[order[first]])]
        positions = np.maximum.accumulate(lengths[candidates]) * np.arange(1, len(candidates) + 1)
        num_samples = max(1, int(np.searchsorted(positions, tokens_per_batch, side="right")))
        batches.append(candidates[:num_samples])
        first += num_samples
    return batches


def share(indices: Sequence[int], rank: int, world: int) -> list[int]:
    """Return what one worker takes of a batch.

    The samples are dealt out to and fro from the last, the longest, on, so that no worker has more than one sample's
    tokens more than another. A batch of fewer samples than workers leaves some of them nothing.

    Args:
        indices: The batch, which is the same on every worker, sorted by length.
        rank: Which worker, from 0.
        world: How many there are.

    Returns:
        The worker's samples; over all workers, each sample of the batch once.
    """
    to_and_fro = 2 * world
    turns = (rank, to_and_fro - 1 - rank)
    return [each for place, each in enumerate(indices) if (len(indices) - 1 - place) % to_and_fro in turns]
