"""Exports of real models for the ONNX benchmarks, made once; and measuring two runtimes in turns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.onnx_backend import OnnxBackend
from calm_graph.augmenters.onnx_export import export_augmenter
from calm_graph.augmenters.onnx_graph import OPSET
from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings, read_export
from calm_graph.augmenters.torch_backend import TorchBackend
from registry import registry
from registry.sources import mirror_folder
from registry.weights import load_body

MODELS = ("smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-0.5b")
QUANTISED = ("int8", "int4")
NUM_THREADS = 2


def layers_of(name: str) -> tuple[int, ...]:
    """Return every fourth layer up to the last one: the paper's taps, and no block is left out."""
    total = registry.get(name).num_layers
    assert total is not None
    return tuple(range((total - 1) % 4, total, 4))


def folder(name: str, precision: Any) -> Path:
    """Return the export of a model, made on the first call and kept beside the models.

    Args:
        name: Of its card.
        precision: Of the weights.
    """
    out = mirror_folder("exports").parent.parent / "exports" / f"{name}-{precision}"
    if out.exists() and (found := read_export(out).onnx) is not None and found.opset != OPSET:
        shutil.rmtree(out)  # what an earlier exporter made
    if not out.exists():
        export_augmenter(
            name,
            layers=layers_of(name),
            out=out,
            precision=precision,
            traced=None if precision == "fp32" else folder(name, "fp32"),
            min_cosine=None if precision == "fp32" else 0.0,  # how close they are is in benchmarks/onnx.md
            show=lambda line: print(f"  {line}", flush=True),
        )
    return out


def in_onnx(name: str, precision: str) -> OnnxBackend:
    """Open an export."""
    session = OnnxSession(read_export(folder(name, precision)), OnnxSettings(num_threads=NUM_THREADS))
    return OnnxBackend(session, name=name, context_length=None)


def in_torch(name: str) -> TorchBackend:
    """Load a model in float32 with the same blocks."""
    torch.set_num_threads(NUM_THREADS)
    body = load_body(registry.get(name), max(layers_of(name)) + 1, dtype=torch.float32)
    return TorchBackend(body, name=name, context_length=None)


def prompt(backend: Backend, name: str, *, num_rows: int, num_tokens: int, cache: Any = None) -> None:
    """Read a left-padded batch of tokens."""
    ids_BS = torch.randint(5, 1000, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))
    real_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    if num_tokens > 1:
        real_BS[1:, : num_tokens // 4] = False
    taps = frozenset(layers_of(name))
    with torch.inference_mode():
        backend.read_tokens(ids_BS, real_BS, known_at_BS=torch.zeros_like(ids_BS), taps=taps, writes={}, cache=cache)


def best_seconds(calls: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """Time calls in turns, so that what else the machine does meets all of them; return the shortest of each.

    Args:
        calls: By name.
        rounds: Turns, after one that warms up.
    """
    found = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                found[name] = min(found[name], time.perf_counter() - start)
    return found
