"""One measured value and the bar it is held to."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path


def machine() -> str:
    """Return what measured: processor, cores that this process may use, system, Python."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}, {num_cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A result.

    Args:
        name: Of the benchmark.
        value: What was measured.
        bar: What it must reach.
        holds: Whether it does.
        unit: Of both.
        machine: What measured it.
    """

    name: str
    value: float
    bar: float
    holds: bool
    unit: str
    machine: str = field(default_factory=machine)

    def json(self) -> str:
        """Return the result as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)
