"""What the exporter writes in many small operators is written in few; that the numbers stay is what parity is for."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from calm_graph.augmenters.onnx_fuse import fuse
from calm_graph.augmenters.onnx_session import GRAPH
from tests.augmenters.exports import Exports


@pytest.mark.parametrize(
    "name, norms, products",
    # Two blocks. Gemma has six norms a block, Qwen 2 has two; each has four products with weights and two without.
    [("other", 12, 12), ("same", 4, 12)],
)
def test_blocks_are_fused(exports: Exports, name: str, norms: int, products: int) -> None:
    model = onnx.load(exports.folder(name) / GRAPH)
    count = Counter(node.op_type for node in model.graph.node)
    assert count["RMSNormalization"] == norms and count["Pow"] == 0
    assert count["RotaryEmbedding"] == 4 and count["Neg"] == 0
    assert count["MatMul"] == products
    # Keys are not copied for each query head: what is expanded is the mask.
    repeated = [node for node in model.graph.node if node.op_type == "Expand" and "unsqueeze" in node.input[0]]
    assert all(
        reader.op_type != "Reshape"
        for node in repeated
        for reader in model.graph.node
        if node.output[0] in reader.input
    )


def test_what_is_fused_stays_as_it_is(exports: Exports) -> None:
    model = onnx.load(exports.folder("other") / GRAPH)
    before = [node.output[0] for node in model.graph.node]
    fuse(model)
    assert [node.output[0] for node in model.graph.node] == before
