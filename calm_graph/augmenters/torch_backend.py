"""A frozen model in torch, cut off after its last tap."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import BlockCall, Write, during, watch
from calm_graph.errors import InputError
from registry.layouts import blocks


class TorchBackend(nn.Module):
    """Runs a frozen model's blocks (no head) and returns the states that are read.

    Args:
        body: The frozen model without its head, with no block above the last tap.
        name: What errors call it.
        context_length: Longest text it was made for, in its tokens; None if it does not say.
    """

    def __init__(self, body: nn.Module, *, name: str, context_length: int | None) -> None:
        super().__init__()
        self.body = body
        self._name = name
        self._context_length = context_length
        self._accepts = frozenset(inspect.signature(body.forward).parameters)
        watch(blocks(body))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.body.parameters()).device

    def read(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        taps: frozenset[int],
        writes: Mapping[int, Write],
    ) -> dict[int, torch.Tensor]:
        """Run the model on its own inputs (pixel values, features, ids) without a cache.

        Args:
            inputs: Keyword arguments of the model's forward.
            taps: Layers to return.
            writes: What attachments into this model add, by layer.

        Returns:
            Layer -> states, float [B, S, C].

        Raises:
            InputError: There are none, or one has a name that the model does not take.
        """
        # Stricter than the model, whose **kwargs would swallow a misspelt name.
        if not inputs or not inputs.keys() <= set(self.inputs()):
            raise InputError(f"augmenter_inputs[{self._name!r}]: got {[*inputs]}, but the model takes {self.inputs()}")
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
    ) -> dict[int, torch.Tensor]:
        """Run the model on left-padded tokens, after those already in `cache`.

        Args:
            ids_BS: int64.
            real_BS: bool, False on padding.
            known_at_BS: int64, kept in the cache so that it can be cropped.
            taps: Layers to return.
            writes: What attachments into this model add, by layer.
            cache: Keys and values of earlier tokens; these tokens are added to it.

        Returns:
            Layer -> states, float [B, S, C].

        Raises:
            InputError: The text is longer than the model's context.
        """
        if cache is None:
            real_BL, positions_BS = real_BS, (real_BS.cumsum(dim=1) - 1).clamp(min=0)
        else:
            real_BL, positions_BS = cache.append(real_BS, known_at_BS)
        # Slots bound positions from above, so the exact (and, on a GPU, waiting) look is seldom needed.
        if self._context_length is not None and real_BL.shape[1] > self._context_length:
            longest = int(positions_BS.max()) + 1
            if longest > self._context_length:
                raise InputError(
                    f"augmenter {self._name!r}: the text has {longest} of its tokens, but its context holds "
                    f"{self._context_length}; shorten the prompt or switch it off: model.augmenters({{...: 0}})"
                )
        inputs = {
            "input_ids": ids_BS,
            "attention_mask": real_BL.long(),
            "position_ids": positions_BS,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        call = BlockCall(taps=taps, writes=writes)
        with during(call):
            self.body(
                **{
                    key: value.to(self.device) if isinstance(value, torch.Tensor) else value
                    for key, value in inputs.items()
                    if key in self._accepts
                }
            )
        if cache is not None:
            cache.trim()
        return call.states

    def inputs(self) -> list[str]:
        """Names of the inputs that the model takes."""
        return sorted(self._accepts - {"kwargs", "self"})
