"""What runs an augmenter: one interface for every runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future

import torch
from torch import nn

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import Write
from calm_graph.errors import InputError


class Backend(nn.Module, ABC):
    """A frozen model that is run and read.

    Args:
        name: What errors call it.
        context_length: Longest text it was made for, in its tokens; None if it does not say.
    """

    def __init__(self, *, name: str, context_length: int | None) -> None:
        super().__init__()
        self._name = name
        self._context_length = context_length

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @abstractmethod
    def inputs(self) -> list[str]:
        """Names of the inputs that the model takes."""

    @abstractmethod
    def read(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        taps: frozenset[int],
        writes: Mapping[int, Write],
    ) -> dict[int, torch.Tensor]:
        """Run the model on its own inputs (pixel values, features, ids) without a cache.

        Args:
            inputs: By name.
            taps: Layers to return.
            writes: What attachments into this model add, by layer.

        Returns:
            Layer -> states, float [B, S, C].

        Raises:
            InputError: There are none, or one has a name that the model does not take.
        """

    @abstractmethod
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
        """Run the model on left-padded tokens, after those already in `cache`.

        Args:
            ids_BS: int64.
            real_BS: bool, False on padding.
            known_at_BS: int64, kept in the cache so that it can be cropped.
            taps: Layers to return.
            writes: What attachments into this model add, by layer.
            cache: Keys and values of earlier tokens; these tokens are added to it.
            withdrawn_at_BS: int64, from when on each token is not seen any more, if that can happen to them.

        Returns:
            Layer -> states, float [B, S, C].

        Raises:
            InputError: The text is longer than the model's context.
        """

    def start_tokens(
        self, ids_BS: torch.Tensor, real_BS: torch.Tensor, *, taps: frozenset[int]
    ) -> Future[dict[int, torch.Tensor]] | None:
        """Begin to run the model somewhere else on a whole prompt, as `read_tokens` would.

        Args:
            ids_BS: int64.
            real_BS: bool, False on padding.
            taps: Layers to return.

        Returns:
            What `read_tokens` returns or raises, later; None if the model runs here.
        """
        return None

    def _check_names(self, inputs: Mapping[str, torch.Tensor]) -> None:
        # Stricter than the model, whose **kwargs would swallow a misspelt name.
        if not inputs or not inputs.keys() <= set(self.inputs()):
            raise InputError(f"augmenter_inputs[{self._name!r}]: got {[*inputs]}, but the model takes {self.inputs()}")

    def _check_length(self, real_BL: torch.Tensor, positions_BS: torch.Tensor) -> None:
        # Slots bound positions from above, so the exact (and, on a GPU, waiting) look is seldom needed.
        if self._context_length is not None and real_BL.shape[1] > self._context_length:
            longest = int(positions_BS.max()) + 1
            if longest > self._context_length:
                raise InputError(
                    f"augmenter {self._name!r}: the text has {longest} of its tokens, but its context holds "
                    f"{self._context_length}; shorten the prompt or switch it off: model.augmenters({{...: 0}})"
                )
