"""One cache object for a composed model: the anchor's keys and values, and everything of its augmenters."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig

from calm_graph.model.request import Request


class ComposedCache(DynamicCache):
    """The anchor's KV cache, with the batch's augmenter caches and contexts moved along with it.

    Args:
        config: The anchor's config.
        request: The fresh request of a composed model.
    """

    def __init__(self, *, config: PreTrainedConfig, request: Request) -> None:
        super().__init__(config=config)
        self.request = request

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the old row `beam_idx[i]`."""
        super().reorder_cache(beam_idx)
        self.request.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        if self.request.last_index_B is not None:
            rows_B = torch.arange(len(self.request.last_index_B), device=self.request.last_index_B.device)
            self.request.select(rows_B.repeat_interleave(repeats))
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows only."""
        super().batch_select_indices(indices)
        self.request.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `abs(tokens_to_remove)` anchor tokens (transformers passes a negative number).

        Raises:
            ValueError: They reach into the sealed prompt; nothing is changed then.
        """
        self.request.check_drop(abs(tokens_to_remove))
        super().crop(tokens_to_remove)
        self.request.drop_last(abs(tokens_to_remove))

    def reset(self) -> None:
        """Refuse: a request's text cannot be forgotten and begun again in the same object.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a ComposedCache belongs to one request; start a new one with model.new_cache()")
