"""The processes that train together: who this one is, and what they tell each other at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workers:
    """The group of this process; alone by default.

    Args:
        rank: Of this process; rank 0 writes the files.
        count: How many there are. With more than one, torch's default process group is set up.
        device: Where this process computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return every worker's values, by rank; all workers must call this with equally many."""
        if self.count == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.float64, device=self.device)
        everyone = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(everyone, own)
        return [each.tolist() for each in everyone]

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return the model with the gradients of its trainable parameters averaged over the workers.

        Frozen weights and buffers are neither broadcast nor looked at: every worker has loaded the same files.
        """
        if self.count == 1:
            return model
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        # Which attachments take part depends on the batch: an augmenter may have nothing to read in it.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)


ALONE = Workers()
