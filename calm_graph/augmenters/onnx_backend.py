"""A frozen model in ONNX Runtime, behind the interface that torch models have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.onnx_session import OnnxSession
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import Write

Array = torch.Tensor | np.ndarray
_DTYPES: dict[type[np.generic], torch.dtype] = {
    np.float32: torch.float32,
    np.float16: torch.float16,
    np.int64: torch.int64,
}


class OnnxBackend(Backend):
    """Runs an ONNX export and returns the states that are read.

    Args:
        session: The opened export.
        name: What errors call it.
        context_length: Longest text it was made for, in its tokens; None if it does not say.
    """

    def __init__(self, session: OnnxSession, *, name: str, context_length: int | None) -> None:
        super().__init__(name=name, context_length=context_length)
        self.session = session

    @property
    def device(self) -> torch.device:
        """Where the session's memory is."""
        return torch.device(self.session.device)

    def inputs(self) -> list[str]:
        """Names of the inputs that the graph takes, apart from keys and values."""
        return sorted(self.session.inputs.keys() - set(self.session.past))

    def read(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        taps: frozenset[int],
        writes: Mapping[int, Write],
    ) -> dict[int, torch.Tensor]:
        """See `Backend.read`."""
        assert not writes, "a plan lets nothing write into a graph"
        self._check_names(inputs)
        layers = sorted(taps)
        states = self._run(inputs, [self.session.state(layer) for layer in layers])
        device = next(iter(inputs.values())).device
        return {layer: each.to(device) for layer, each in zip(layers, states, strict=True)}

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
        assert not writes and withdrawn_at_BS is None, "a plan lets nothing write into a graph, and withdraws nothing"
        back_BS = None
        if cache is None or cache.real_BL is None:
            past: dict[str, Array] = {**self.session.empty_past(len(ids_BS))}
            real_BL = real_BS
        else:
            past = dict(zip(self.session.past, cache.keys_values(), strict=True))
            # The graph joins old and new slots as they come. Padding between them would stretch sliding windows, so
            # the new tokens' padding goes to their right for the call, and the states are put back afterwards.
            if not bool(real_BS.all()):
                order_BS = (~real_BS).to(torch.uint8).argsort(dim=1, stable=True)
                ids_BS, real_BS, known_at_BS = (each.gather(1, order_BS) for each in (ids_BS, real_BS, known_at_BS))
                back_BS = order_BS.argsort(dim=1)
            real_BL = torch.cat([cache.real_BL, real_BS], dim=1)
        if cache is None:
            positions_BS = (real_BS.cumsum(dim=1) - 1).clamp(min=0)
        else:
            _, positions_BS = cache.append(real_BS, known_at_BS)
        self._check_length(real_BL, positions_BS)
        inputs: dict[str, Array] = {
            "input_ids": ids_BS,
            "attention_mask": real_BL,
            "position_ids": positions_BS,
            **past,
        }
        layers = sorted(taps)
        wanted = [self.session.state(layer) for layer in layers]
        if cache is not None:
            wanted += [name.replace("past.", "present.", 1) for name in self.session.past]
        outputs = self._run({name: each for name, each in inputs.items() if name in self.session.inputs}, wanted)
        if cache is not None:
            cache.replace(outputs[len(layers) :])
            cache.trim()
        states = outputs[: len(layers)]
        if back_BS is not None:
            states = [each.gather(1, back_BS[:, :, None].expand(-1, -1, each.shape[2])) for each in states]
        return {layer: each.to(ids_BS.device) for layer, each in zip(layers, states, strict=True)}

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[torch.Tensor]:
        feeds = {name: self._ready(name, each) for name, each in inputs.items()}
        if self.session.device == "cuda":
            torch.cuda.current_stream().synchronize()  # ONNX Runtime reads the inputs on a stream of its own
        return [from_dlpack(value.__dlpack__()) for value in self.session.bind(feeds, outputs)]

    def _ready(self, name: str, value: Array) -> Array:
        if isinstance(value, np.ndarray):
            return value
        return value.detach().to(self.device, _DTYPES[self.session.inputs[name]]).contiguous()
