"""Files of quantised exports: int8 at most 0.30 and int4 at most 0.20 of the float32 weights that they replace."""

from __future__ import annotations

from benchmarks._onnx import MODELS, QUANTISED, folder
from benchmarks.bar import Bar
from calm_graph.augmenters.onnx_session import read_export

BARS = {"int8": 0.30, "int4": 0.20}


def measure() -> Bar:
    """Weigh the exports; the value is the largest int8 one. The bar also holds int4 to its own."""
    largest = dict.fromkeys(QUANTISED, 0.0)
    for name in MODELS:
        for precision in QUANTISED:
            export = read_export(folder(name, precision)).onnx
            assert export is not None
            ratio = export.size_bytes / export.replaces_bytes
            size = f"{export.size_bytes / 1e6:.1f} of {export.replaces_bytes / 1e6:.1f} MB"
            print(
                f"{name} {precision}: {size} = {ratio:.3f}, cosine {min(export.cosine.values()):.4f} at the worst layer"
            )
            largest[precision] = max(largest[precision], ratio)
    holds = all(largest[precision] <= bar for precision, bar in BARS.items())
    return Bar(
        name="onnx_size", value=round(largest["int8"], 3), bar=BARS["int8"], holds=holds, unit="of float32 (int8)"
    )
