"""A real model as an ONNX augmenter: export it in each precision, verify it, and compare size, speed and states."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.onnx_backend import OnnxBackend
from calm_graph.augmenters.onnx_export import export_augmenter, verify_export
from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.torch_backend import TorchBackend
from registry import registry
from registry.weights import load_body

PRECISIONS: tuple[Any, ...] = ("fp32", "int8", "int4")
NUM_TOKENS = 128


def main() -> None:
    """Export, verify, compare."""
    parser = argparse.ArgumentParser(prog="python -m examples.onnx.real", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="card of a model whose files are here")
    parser.add_argument("--layers", default="9,19,29", help="layers that are read, with commas (default: 9,19,29)")
    parser.add_argument("--out", type=Path, default=Path("runs/onnx-real"), help="gets the exports; replaced")
    args = parser.parse_args()
    layers = [int(layer) for layer in args.layers.split(",")]
    shutil.rmtree(args.out, ignore_errors=True)
    print(table(args.model, layers, args.out))


def table(model: str, layers: Sequence[int], out: Path) -> str:
    """Export a model in each precision and measure the exports against torch.

    Args:
        model: Name of its card.
        layers: That are read.
        out: Gets a folder for each precision.

    Returns:
        A table in Markdown: cosine and error are those of the worst layer on the texts of `verify`, and the times are
        the shortest of several, with the threads that torch has here.
    """
    card = registry.get(model)
    body = load_body(card, max(layers) + 1, dtype=torch.float32)
    in_torch = TorchBackend(body, name=model, context_length=card.context_length)
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(5, min(card.vocab_size or 1000, 1000), (1, NUM_TOKENS), generator=generator)
    size_bytes = sum(4 * each.numel() for each in in_torch.parameters())
    rows = [("torch fp32", size_bytes, "", "", *speeds(in_torch, layers, ids_BS))]
    for precision in PRECISIONS:
        folder = out / precision
        traced = None if precision == "fp32" else out / "fp32"
        export_augmenter(model, layers=layers, out=folder, precision=precision, traced=traced, min_cosine=0, show=print)
        exported, parity = verify_export(folder)
        assert exported.onnx is not None
        session = OnnxSession(exported, OnnxSettings(num_threads=torch.get_num_threads()))
        backend = OnnxBackend(session, name=model, context_length=card.context_length)
        cosine, error = min(parity.cosine.values()), max(parity.relative_error.values())
        measured = (f"{cosine:.4f}", f"{error:.1e}", *speeds(backend, layers, ids_BS))
        rows.append((f"ONNX {precision}", exported.onnx.size_bytes, *measured))
    heads = ("runtime", "size", "cosine", "largest error", f"read {NUM_TOKENS} tokens", "one step after them")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, size, cosine_text, error_text, read_s, step_s in rows:
        cells = (
            name,
            f"{size / 1e6:.1f} MB",
            cosine_text,
            error_text,
            f"{1000 * read_s:.1f} ms",
            f"{1000 * step_s:.1f} ms",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speeds(backend: Backend, layers: Sequence[int], ids_BS: torch.Tensor) -> tuple[float, float]:
    """Shortest times in seconds to read a text, and to read one token more.

    Args:
        backend: What reads.
        layers: That are read.
        ids_BS: Token ids of the text.
    """
    read, step = float("inf"), float("inf")
    with torch.inference_mode():
        for _ in range(5):
            cache = RaggedCache()
            read = min(read, _seconds(backend, ids_BS, layers, cache))
            step = min(step, *(_seconds(backend, ids_BS[:, :1], layers, cache) for _ in range(5)))
    return read, step


def _seconds(backend: Backend, ids_BS: torch.Tensor, layers: Sequence[int], cache: RaggedCache) -> float:
    real_BS, known_at_BS = torch.ones_like(ids_BS, dtype=torch.bool), torch.zeros_like(ids_BS)
    start = time.perf_counter()
    backend.read_tokens(ids_BS, real_BS, known_at_BS=known_at_BS, taps=frozenset(layers), writes={}, cache=cache)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
