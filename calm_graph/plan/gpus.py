"""Devices that a run can be planned for: peak arithmetic, memory and bandwidth, as their makers publish them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calm_graph.declare.base import near
from calm_graph.errors import InputError

TERA = 10**12
GIGA = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device.

    Args:
        title: Its whole name.
        peak_flops: Precision -> dense FLOP/s; a precision that it has no arithmetic for is absent.
        memory_bytes: None where it is not the device's own.
        bandwidth_bytes: Of its memory, per second.
    """

    title: str
    peak_flops: Mapping[str, float]
    memory_bytes: int | None
    bandwidth_bytes: float


def _gpu(title: str, *, fp32: float, bf16: float | None, memory_gb: int, bandwidth_gb: float) -> Gpu:
    peak = {"fp32": fp32 * TERA} | ({} if bf16 is None else {"bf16": bf16 * TERA})
    return Gpu(title=title, peak_flops=peak, memory_bytes=memory_gb * GIGA, bandwidth_bytes=bandwidth_gb * GIGA)


# Dense figures: data sheets that print tensor figures "with sparsity" print twice these. fp32 is without TF32, which
# torch leaves off. Sources: the makers' data sheets of each product (NVIDIA A100, H100, H200, HGX B200, L4, L40S, T4;
# AMD Instinct MI300X).
GPUS: Mapping[str, Gpu] = {
    "a100-40gb": _gpu("NVIDIA A100 40GB", fp32=19.5, bf16=312, memory_gb=40, bandwidth_gb=1555),
    "a100-80gb": _gpu("NVIDIA A100 80GB SXM", fp32=19.5, bf16=312, memory_gb=80, bandwidth_gb=2039),
    "h100": _gpu("NVIDIA H100 SXM", fp32=67, bf16=989, memory_gb=80, bandwidth_gb=3350),
    "h200": _gpu("NVIDIA H200 SXM", fp32=67, bf16=989, memory_gb=141, bandwidth_gb=4800),
    "b200": _gpu("NVIDIA B200 in HGX", fp32=80, bf16=2250, memory_gb=180, bandwidth_gb=8000),
    "l4": _gpu("NVIDIA L4", fp32=30.3, bf16=121, memory_gb=24, bandwidth_gb=300),
    "l40s": _gpu("NVIDIA L40S", fp32=91.6, bf16=362, memory_gb=48, bandwidth_gb=864),
    # Turing's tensor cores know fp16, not bf16.
    "t4": _gpu("NVIDIA T4", fp32=8.1, bf16=None, memory_gb=16, bandwidth_gb=320),
    "mi300x": _gpu("AMD Instinct MI300X", fp32=163.4, bf16=1307, memory_gb=192, bandwidth_gb=5300),
    # A core with two 256-bit fused multiply-adds a cycle at 3 GHz, and one core's share of the memory's bandwidth.
    "cpu": Gpu(title="one CPU core", peak_flops={"fp32": 96 * GIGA}, memory_bytes=None, bandwidth_bytes=10 * GIGA),
}


def find_gpu(name: str) -> Gpu:
    """Return the device of this name.

    Raises:
        InputError: There is none; the message lists them.
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise InputError(f"--gpu: got {name!r}, but known are {', '.join(GPUS)}{near(name.lower(), GPUS)}")
    return found
