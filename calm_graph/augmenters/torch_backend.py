"""A frozen model in torch, cut off after its last tap."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.pairs import NEVER, pairwise_mask, seen_pairs
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import BlockCall, Write, during, watch
from registry.layouts import blocks


class TorchBackend(Backend):
    """Runs a frozen model's blocks (no head) and returns the states that are read.

    Args:
        body: The frozen model without its head, with no block above the last tap.
        name: What errors call it.
        context_length: Longest text it was made for, in its tokens; None if it does not say.
    """

    def __init__(self, body: nn.Module, *, name: str, context_length: int | None) -> None:
        super().__init__(name=name, context_length=context_length)
        self.body = body
        self._accepts = frozenset(inspect.signature(body.forward).parameters)
        watch(blocks(body))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.body.parameters()).device

    def inputs(self) -> list[str]:
        """Names of the inputs that the model takes."""
        return sorted(self._accepts - {"kwargs", "self"})

    def read(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        taps: frozenset[int],
        writes: Mapping[int, Write],
    ) -> dict[int, torch.Tensor]:
        """See `Backend.read`."""
        self._check_names(inputs)
        call = BlockCall(taps=taps, writes=writes)
        with during(call):
            self.body(**{key: value.to(self.device) for key, value in inputs.items()})
        return call.states

    def read_tokens(
        self,
        ids_BS: torch.Tensor,
        real_BS: torch.Tensor,
        *,
        known_at_BS: torch.Tensor,
        taps: frozenset[int],
        writes: Mapping[int, Write],
        cache: RaggedCache | None = None,
        withdrawn_at_BS: torch.Tensor | None = None,
    ) -> dict[int, torch.Tensor]:
        """See `Backend.read_tokens`."""
        if cache is None:
            real_BL, positions_BS = real_BS, (real_BS.cumsum(dim=1) - 1).clamp(min=0)
        else:
            real_BL, positions_BS = cache.append(real_BS, known_at_BS, withdrawn_at_BS)
        mask: torch.Tensor | dict[str, torch.Tensor] = real_BL.long()
        if withdrawn_at_BS is not None:
            if cache is not None and cache.span_BL2 is not None:
                known_at_BS, withdrawn_at_BS = cache.span_BL2.unbind(-1)
            if bool((real_BL & (withdrawn_at_BS != NEVER)).any()):
                sees_BLL, positions_BL = seen_pairs(real_BL, known_at_BS, withdrawn_at_BS)
                positions_BS = positions_BL[:, -ids_BS.shape[1] :]
                dtype = next(self.body.parameters()).dtype
                mask = pairwise_mask(self.body.config, sees_BLL, positions_BL, num_new=ids_BS.shape[1], dtype=dtype)
        self._check_length(real_BL, positions_BS)
        inputs = {
            "input_ids": ids_BS,
            "attention_mask": mask,
            "position_ids": positions_BS,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        call = BlockCall(taps=taps, writes=writes)
        with during(call):
            self.body(**{key: _moved(value, self.device) for key, value in inputs.items() if key in self._accepts})
        if cache is not None:
            cache.trim()
        return call.states


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: each.to(device) for key, each in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
