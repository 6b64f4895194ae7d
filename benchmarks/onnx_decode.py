"""One decoding step in ONNX Runtime: the best quantised export at least 2.5 times as fast as torch in float32."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks._onnx import MODELS, NUM_THREADS, QUANTISED, best_seconds, in_onnx, in_torch, prompt
from benchmarks.bar import Bar
from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.ragged import RaggedCache

BAR = 2.5
NUM_OLD = 256


def measure() -> Bar:
    """Step one row after 256 tokens; the value is the smallest ratio of the best quantised export over the models."""
    best = []
    for name in MODELS:
        backends = {"torch": in_torch(name), **{each: in_onnx(name, each) for each in ("fp32", *QUANTISED)}}
        seconds = best_seconds({runtime: _stepper(each, name) for runtime, each in backends.items()}, rounds=20)
        ratios = {runtime: seconds["torch"] / each for runtime, each in seconds.items()}
        shown = "  ".join(f"{runtime} {ratio:.2f}x" for runtime, ratio in ratios.items() if runtime != "torch")
        print(f"{name} {NUM_THREADS} threads: torch {1000 * seconds['torch']:.1f} ms  {shown}", flush=True)
        best.append(max(ratios[each] for each in QUANTISED))
    value = round(min(best), 2)
    return Bar(name="onnx_decode", value=value, bar=BAR, holds=value >= BAR, unit="x torch")


def _stepper(backend: Backend, name: str) -> Callable[[], None]:
    cache = RaggedCache()
    prompt(backend, name, num_rows=1, num_tokens=NUM_OLD, cache=cache)
    return lambda: prompt(backend, name, num_rows=1, num_tokens=1, cache=cache)
