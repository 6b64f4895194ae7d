"""Reading a prompt: ONNX in float32 at least 1.1 times as fast as torch, the best quantised export 1.5 times."""

from __future__ import annotations

from functools import partial

from benchmarks._onnx import MODELS, NUM_THREADS, QUANTISED, best_seconds, in_onnx, in_torch, prompt
from benchmarks.bar import Bar

BAR_FP32, BAR_QUANTISED = 1.1, 1.5
SHAPES = ((1, 128), (4, 128))


def measure() -> Bar:
    """Read two batches with each model; the value is the smallest ratio of float32, over models and batches.

    The bar also holds the best quantised export of each model and batch to 1.5.
    """
    fp32, quantised = [], []
    for name in MODELS:
        backends = {"torch": in_torch(name), **{each: in_onnx(name, each) for each in ("fp32", *QUANTISED)}}
        for num_rows, num_tokens in SHAPES:
            calls = {
                runtime: partial(prompt, backend, name, num_rows=num_rows, num_tokens=num_tokens)
                for runtime, backend in backends.items()
            }
            seconds = best_seconds(calls, rounds=5)
            ratios = {runtime: seconds["torch"] / each for runtime, each in seconds.items()}
            rate = num_rows * num_tokens / seconds["torch"]
            shown = "  ".join(f"{runtime} {ratio:.2f}x" for runtime, ratio in ratios.items() if runtime != "torch")
            print(
                f"{name} {num_rows} x {num_tokens} tokens, {NUM_THREADS} threads: torch {rate:,.0f}/s  {shown}",
                flush=True,
            )
            fp32.append(ratios["fp32"])
            quantised.append(max(ratios[each] for each in QUANTISED))
    holds = min(fp32) >= BAR_FP32 and min(quantised) >= BAR_QUANTISED
    print(
        f"smallest: fp32 {min(fp32):.2f}x (bar {BAR_FP32}), best quantised {min(quantised):.2f}x (bar {BAR_QUANTISED})"
    )
    return Bar(name="onnx_prompt", value=round(min(fp32), 2), bar=BAR_FP32, holds=holds, unit="x torch")
