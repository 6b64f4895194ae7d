"""The key-value demo with its augmenters in torch and in ONNX: size, speed and accuracy of each precision."""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.onnx_session import read_export
from calm_graph.model.composed import ComposedModel
from examples.arithmetic.demo import SHIPPED
from examples.arithmetic.measure import measure
from examples.onnx.swap import export_all

PRECISIONS: tuple[Any, ...] = ("fp32", "fp16", "int8", "int4")


def main() -> None:
    """Export, swap, compare."""
    parser = argparse.ArgumentParser(prog="python -m examples.onnx.demo", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="default: the composition that ships")
    parser.add_argument("--out", type=Path, default=Path("runs/onnx-demo"), help="gets the exports; replaced")
    parser.add_argument("--count", type=int, default=500, help="questions of each task")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    rows = [row("torch fp32", ComposedModel.from_pretrained(args.checkpoint, dtype=torch.float32), None, args.count)]
    for precision in PRECISIONS:
        folders = export_all(args.checkpoint, args.out, precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that states shift with fewer bits is what the table shows
            model = ComposedModel.from_pretrained(args.checkpoint, dtype=torch.float32, exports=folders)
        size = sum(export.size_bytes for folder in folders if (export := read_export(folder).onnx))
        rows.append(row(f"ONNX {precision}", model, size, args.count))
    print(table(rows))


def row(name: str, model: ComposedModel, size_bytes: int | None, count: int) -> dict[str, Any]:
    """Measure one way to run the augmenters.

    Args:
        name: Of the row.
        model: The composition.
        size_bytes: Of the exports; None counts torch's parameters.
        count: Questions of each task.
    """
    backends = [backend for backend in model.graph.backends.values() if isinstance(backend, Backend)]
    if size_bytes is None:
        size_bytes = sum(4 * each.numel() for backend in backends for each in backend.parameters())
    reports = measure(name, model, model.tokenizer, count=count, seed=0)
    accuracy = {f"{each['task']} {each['split']}": each["accuracy"] for each in reports}
    return {"name": name, "size_bytes": size_bytes, "milliseconds": 1000 * _read_seconds(model), **accuracy}


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown."""
    tasks = [key for key in rows[0] if key not in ("name", "size_bytes", "milliseconds")]
    heads = ["augmenters", "size", "read 64 prompts", *tasks]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for each in rows:
        cells = [each["name"], f"{each['size_bytes'] / 1e6:.2f} MB", f"{each['milliseconds']:.1f} ms"]
        lines.append(f"| {' | '.join([*cells, *(f'{100 * each[task]:.1f}' for task in tasks)])} |")
    return "\n".join(lines)


def _read_seconds(model: ComposedModel) -> float:
    """Shortest time in which all augmenters read a batch of prompts."""
    ids_BS = torch.randint(5, 40, (64, 16), generator=torch.Generator().manual_seed(0))
    real_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(10):
            start = time.perf_counter()
            for run in model.graph.runs:
                backend = model.graph.backend(run.name)
                taps = frozenset(run.taps)
                backend.read_tokens(ids_BS, real_BS, known_at_BS=torch.zeros_like(ids_BS), taps=taps, writes={})
            best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
