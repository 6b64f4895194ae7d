"""States of frozen models that are handed in instead of computed: they are constants of the text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from calm_graph.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredStates:
    """What some layers of one frozen model say about a batch: real tokens only, row after row.

    Attributes:
        layers: L of them.
        lengths_B: int64, tokens of each row.
        states_RLC: float, for the R tokens of all rows.
    """

    layers: tuple[int, ...]
    lengths_B: torch.Tensor
    states_RLC: torch.Tensor

    def padded(self, real_BS: torch.Tensor, *, layers: Collection[int], name: str) -> dict[int, torch.Tensor]:
        """Return the states as the model itself would have: layer -> float [B, S, C], zero on padding.

        Args:
            real_BS: bool, True where a token is real.
            layers: Which to return.
            name: The model, for errors.

        Raises:
            InputError: They are the states of another text, or a layer is missing.
        """
        wanted, found = real_BS.sum(dim=1).tolist(), self.lengths_B.tolist()
        if wanted != found:
            raise InputError(f"stored_states[{name!r}]: got {found} tokens by row, but the model reads {wanted}")
        if missing := sorted(set(layers) - set(self.layers)):
            raise InputError(f"stored_states[{name!r}]: got layers {[*self.layers]}, but layers {missing} are read too")
        place = {layer: index for index, layer in enumerate(self.layers)}
        flat_RLC = self.states_RLC.to(real_BS.device)
        places = real_BS.nonzero(as_tuple=True)
        padded = {}
        for layer in layers:
            states_BSC = flat_RLC.new_zeros(*real_BS.shape, flat_RLC.shape[-1])
            states_BSC[places] = flat_RLC[:, place[layer]]
            padded[layer] = states_BSC
        return padded

    def real(self, device: torch.device) -> torch.Tensor:
        """The mask of these tokens, padded on the right: bool [B, S]."""
        return (torch.arange(int(self.lengths_B.max())) < self.lengths_B[:, None]).to(device)
