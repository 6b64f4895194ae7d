"""Planning 50 augmenters with 40 attachments each: under 50 ms, without torch."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from benchmarks.bar import Bar

NUM_AUGMENTERS = 50
NUM_ATTACHMENTS = 40
BAR_MS = 50.0
NUM_REPEATS = 15


def measure() -> Bar:
    """Plan in a fresh process, where nothing has been imported; the value is the median."""
    child = subprocess.run([sys.executable, "-m", "benchmarks.plan"], check=True, capture_output=True, text=True)
    found = json.loads(child.stdout)
    times_ms = found["times_ms"]
    median_ms = statistics.median(times_ms)
    print(f"{NUM_AUGMENTERS} augmenters x {NUM_ATTACHMENTS} attachments, {len(times_ms)} times")
    print(f"first {times_ms[0]:.1f} ms, median {median_ms:.1f} ms, slowest {max(times_ms):.1f} ms")
    print(f"heavy modules imported: {', '.join(found['heavy']) or 'none'}")
    return Bar(
        name="plan", value=round(median_ms, 2), bar=BAR_MS, holds=median_ms < BAR_MS and not found["heavy"], unit="ms"
    )


def plan_often() -> dict[str, list[float] | list[str]]:
    """Plan several times.

    Returns:
        `times_ms` of each time, and `heavy`: which of the heavy modules this process has imported.
    """
    from calm_graph.declare.composition import Attachment, Augmenter, Composition
    from calm_graph.plan.graph import make_plan
    from registry import ModelCard, Registry

    def card(name: str, num_layers: int) -> ModelCard:
        return ModelCard(
            name=name,
            source=f"hub:example/{name}",
            architecture="llama",
            num_layers=num_layers,
            hidden_size=1024,
            num_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            intermediate_size=4096,
            num_parameters=10**9,
            vocab_size=32_000,
            context_length=8192,
            causal=True,
        )

    names = [f"augmenter-{index}" for index in range(NUM_AUGMENTERS)]
    registry = Registry([card("anchor", 80), *(card(name, NUM_ATTACHMENTS) for name in names)])
    attach = [Attachment(augmenter_layer=layer, anchor_layer=2 * layer + 1) for layer in range(NUM_ATTACHMENTS)]
    composition = Composition(
        name="large", anchor="anchor", augmenters=[Augmenter(name, attach=attach) for name in names]
    )
    times_ms = []
    for _ in range(NUM_REPEATS):
        start_s = time.perf_counter()
        plan = make_plan(composition, registry=registry)
        times_ms.append(1000 * (time.perf_counter() - start_s))
    assert len(plan.attachments) == NUM_AUGMENTERS * NUM_ATTACHMENTS
    heavy: list[str] = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    return {"times_ms": times_ms, "heavy": heavy}


if __name__ == "__main__":
    print(json.dumps(plan_often()))
