"""One Ray worker against the plain loop, once both have started: the same steps, tokens per second."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.bar import Bar

BAR = 0.95
NUM_STEPS = 120
WARM_UP_STEPS = 20
BATCH_SIZE = 64


def measure() -> Bar:
    """Train the demo's composition here, through Ray and here again; the value is Ray's speed over the plain one."""
    plain = [_tokens_per_s(0)]
    with_ray = _tokens_per_s(1)
    plain.append(_tokens_per_s(0))
    print(f"plain {plain[0]:,.0f} and {plain[1]:,.0f} tokens/s, one Ray worker {with_ray:,.0f} tokens/s")
    value = with_ray / statistics.mean(plain)
    return Bar(name="ray_overhead", value=round(value, 3), bar=BAR, holds=value >= BAR, unit="x plain tokens/s")


def _tokens_per_s(num_workers: int) -> float:
    """Median over the steps after the warm-up."""
    from calm_graph.declare.settings import TrainSettings
    from calm_graph.train import fit
    from calm_graph.train.metrics import read_metrics
    from examples.arithmetic.compositions import both
    from examples.arithmetic.data import test_rows

    rows = test_rows("key_value", ["garden", "kitchen"], split="seen", count=20 * BATCH_SIZE)
    data = [{"prompt": row.prompt, "completion": row.completion} for row in rows]
    settings = TrainSettings(
        max_steps=NUM_STEPS,
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        device="cpu",
        checkpoint_every_steps=NUM_STEPS,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(both, data=data, out=folder, settings=settings, show="none")
        records = read_metrics(Path(folder) / "metrics.jsonl")
    return statistics.median(float(record["tokens_per_s"]) for record in records[WARM_UP_STEPS:] if "loss" in record)
