"""States on the wire: one safetensors body, which can hold data only. NumPy alone, for services without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

Wire = Literal["float32", "float16", "int8"]

_BYTES: Mapping[Wire, int] = {"float32": 4, "float16": 2, "int8": 1}
_LARGEST = {"float16": 1.0, "int8": 127.0}
_HEADER_BYTES = 1 << 16


def pack(states: Mapping[int, np.ndarray], wire: Wire) -> bytes:
    """Write states.

    float16 and int8 hold each token's state divided by its largest channel (over 127 of int8), and that number in
    float32: whatever a model's states reach, they fit. A channel is off by at most 2^-11 of itself, or 1/254 of the
    token's largest.

    Args:
        states: Layer -> float [N, C], the real tokens row by row.
        wire: How they travel.

    Returns:
        A safetensors file.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer, state_NC in states.items():
        state_NC = np.ascontiguousarray(state_NC, dtype=np.float32)
        if wire == "float32":
            tensors[f"state.{layer}"] = state_NC
            continue
        scale_N = np.abs(state_NC).max(axis=1, initial=0) / np.float32(_LARGEST[wire])
        small_NC = state_NC / np.where(scale_N == 0, 1, scale_N)[:, None]
        small_NC = small_NC.astype(np.float16) if wire == "float16" else np.rint(small_NC).astype(np.int8)
        tensors[f"state.{layer}"] = small_NC
        tensors[f"scale.{layer}"] = scale_N
    return save(tensors)


def most_bytes(*, num_layers: int, num_tokens: int, hidden_size: int, wire: Wire) -> int:
    """Return the most bytes that such a file may have."""
    per_token = hidden_size * _BYTES[wire] + (0 if wire == "float32" else 4)
    return num_layers * num_tokens * per_token + _HEADER_BYTES


def unpack(
    body: bytes, *, layers: Sequence[int], num_tokens: int, hidden_size: int, wire: Wire
) -> dict[int, np.ndarray]:
    """Read states that somebody else wrote.

    Args:
        body: What came.
        layers: Those that were asked for.
        num_tokens: That were sent.
        hidden_size: Of the model.
        wire: That was asked for.

    Returns:
        Layer -> float32 [N, C].

    Raises:
        ValueError: It is anything but finite numbers of these names, shapes and types.
    """
    try:
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no whole safetensors file ({str(error)[:100]})") from None
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {}
    for layer in layers:
        expected[f"state.{layer}"] = np.dtype(wire), (num_tokens, hidden_size)
        if wire != "float32":
            expected[f"scale.{layer}"] = np.dtype(np.float32), (num_tokens,)
    if tensors.keys() != expected.keys():
        raise ValueError(f"has {_some(tensors)}, but {_some(expected)} were asked for")
    for name, (dtype, shape) in expected.items():
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise ValueError(f"has {name} as {tensor.dtype} {tensor.shape}, but it must be {dtype} {shape}")
    states = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in layers:
            state_NC = tensors[f"state.{layer}"].astype(np.float32)
            if wire != "float32":
                state_NC *= tensors[f"scale.{layer}"][:, None]
            if not np.isfinite(state_NC).all():
                raise ValueError(f"has numbers in layer {layer} that are not finite")
            states[layer] = state_NC
    return states


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(name[:40] for name in sorted(names)[:6])
    return f"{len(names)} tensors ({shown})"
