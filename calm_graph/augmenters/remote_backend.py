"""A frozen model at its owner's: token ids go there, and only the states that are read come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import Write
from calm_graph.augmenters.wire import most_bytes, unpack
from calm_graph.errors import AugmenterError, AugmenterUnavailableError, InputError
from registry import ModelCard
from registry.errors import RemoteError, RemoteUnavailableError
from registry.service import service_of

_MAX_UNDER_WAY = 32
"""Prompts that one service is asked about at the same time; more wait."""


class RemoteBackend(Backend):
    """Asks the service that a card names.

    Args:
        card: Of a service, described.
        name: What errors call it.
        context_length: Longest text it was made for, in its tokens; None if it does not say.
    """

    def __init__(self, card: ModelCard, *, name: str, context_length: int | None) -> None:
        super().__init__(name=name, context_length=context_length)
        self._service = service_of(card)
        assert card.fingerprint is not None and card.hidden_size is not None, "a plan is made from described cards"
        self._fingerprint, self._hidden_size = card.fingerprint, card.hidden_size

    @property
    def device(self) -> torch.device:
        """Where states arrive."""
        return torch.device("cpu")

    def inputs(self) -> list[str]:
        """Names of the inputs that the model takes."""
        return ["input_ids"]

    def read(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        taps: frozenset[int],
        writes: Mapping[int, Write],
    ) -> dict[int, torch.Tensor]:
        """See `Backend.read`."""
        raise InputError(f"augmenter_inputs[{self._name!r}]: given, but the service reads the prompt's tokens only")

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
        """See `Backend.read_tokens`.

        Raises:
            AugmenterError: The service refuses, or answers something else.
            AugmenterUnavailableError: It does not answer.
        """
        assert not writes and cache is None, "a plan lets a service read prompts only, and nothing write there"
        return self.start_tokens(ids_BS, real_BS, taps=taps).result()

    def start_tokens(
        self, ids_BS: torch.Tensor, real_BS: torch.Tensor, *, taps: frozenset[int]
    ) -> Future[dict[int, torch.Tensor]]:
        """See `Backend.start_tokens`."""
        self._check_length(real_BS, (real_BS.cumsum(dim=1) - 1).clamp(min=0))
        return _pool(self._service.url).submit(self._ask, ids_BS, real_BS, sorted(taps))

    def _ask(self, ids_BS: torch.Tensor, real_BS: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
        rows = [ids_S[real_S].tolist() for ids_S, real_S in zip(ids_BS.cpu(), real_BS.cpu(), strict=True)]
        num_tokens, width, wire = sum(map(len, rows)), self._hidden_size, self._service.access.wire
        asked = {
            "token_ids": [row for row in rows if row],
            "layers": layers,
            "wire": wire,
            "fingerprint": self._fingerprint,
        }
        limit = most_bytes(num_layers=len(layers), num_tokens=num_tokens, hidden_size=width, wire=wire)
        try:
            body = self._service.ask("/v1/states", body=json.dumps(asked).encode(), max_bytes=limit)
            found = unpack(body, layers=layers, num_tokens=num_tokens, hidden_size=width, wire=wire)
        except RemoteUnavailableError as error:
            raise AugmenterUnavailableError(str(error)) from None
        except RemoteError as error:
            raise AugmenterError(str(error)) from None
        except ValueError as error:
            raise AugmenterError(self._service.said(f"sent an answer that {error}")) from None
        return {layer: _padded(state_NC, real_BS) for layer, state_NC in found.items()}


def _padded(state_NC: np.ndarray, real_BS: torch.Tensor) -> torch.Tensor:
    """The tokens' states in their places, float32 [B, S, C]; zeros on padding."""
    state_BSC = torch.zeros(*real_BS.shape, state_NC.shape[1], device=real_BS.device)
    state_BSC[real_BS] = torch.from_numpy(state_NC).to(real_BS.device)
    return state_BSC


@lru_cache(maxsize=64)
def _pool(url: str) -> ThreadPoolExecutor:
    """Threads of its own for each service, so that a slow one does not hold up the others."""
    return ThreadPoolExecutor(_MAX_UNDER_WAY, thread_name_prefix=f"ask {url}")
