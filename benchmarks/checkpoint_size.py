"""A checkpoint holds the trained parameters and nothing else: its file is within 1% of their bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.bar import Bar

BAR_RATIO = 1.01


def measure() -> Bar:
    """Save the demo's composition of two augmenters; the value is file bytes / parameter bytes."""
    from calm_graph.declare.description import WEIGHTS
    from calm_graph.model.build import build_model
    from examples.arithmetic.compositions import both

    model = build_model(both, seed=0)
    trained = [each for each in model.parameters() if each.requires_grad]
    parameter_bytes = sum(each.numel() * each.element_size() for each in trained)
    all_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file_bytes = (Path(folder) / WEIGHTS).stat().st_size
    ratio = file_bytes / parameter_bytes
    print(f"{file_bytes:,} bytes for {parameter_bytes:,} bytes of trained parameters (all models: {all_bytes:,})")
    return Bar(name="checkpoint_size", value=round(ratio, 5), bar=BAR_RATIO, holds=ratio <= BAR_RATIO, unit="ratio")
