"""Fewer bits for the weights of a graph, so that each state still depends on its own row alone.

ONNX Runtime's own dynamic quantisation takes one activation scale for a whole batch: what stands in other rows, or
later in the text, would change a state. Here every row (one token) has its own scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

Precision = Literal["fp32", "fp16", "int8", "int4"]
BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 5}
"""Bits a weight; an int4 weight shares a float32 scale with 31 others."""

_BLOCK = 32
_CONTRIB = "com.microsoft"


def reduce_precision(model: onnx.ModelProto, precision: Precision) -> None:
    """Rewrite the matrices of a graph in place: what a `MatMul` multiplies by, and tables that a `Gather` looks up.

    Args:
        model: A float32 graph whose weights are in memory.
        precision: `fp16` stores halves and computes in float32; `int8` has a scale for each output and multiplies
            integers; `int4` has a scale for each 32 weights.
    """
    if precision == "fp32":
        return
    rewriter = _Rewriter(model.graph)
    matmul, gather = {
        "fp16": (rewriter.matmul_half, rewriter.gather_half),
        "int8": (rewriter.matmul_int8, rewriter.gather_int8),
        "int4": (rewriter.matmul_int4, rewriter.gather_int4),
    }[precision]
    rewriter.rewrite(matmul, gather)
    if precision in ("int8", "int4") and all(each.domain != _CONTRIB for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))


class _Rewriter:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {each.name: each for each in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self._rows: dict[str, tuple[str, str]] = {}
        self._used: set[str] = set()

    def rewrite(
        self,
        matmul: Callable[[onnx.NodeProto, np.ndarray], None],
        gather: Callable[[onnx.NodeProto, np.ndarray], None],
    ) -> None:
        for node in self.graph.node:
            matrix = None
            if node.op_type == "MatMul":
                matrix = self._matrix(node.input[1])
            elif node.op_type == "Gather" and not any(each.name == "axis" and each.i for each in node.attribute):
                matrix = self._matrix(node.input[0])
            if matrix is None:
                self.nodes.append(node)
            else:
                (matmul if node.op_type == "MatMul" else gather)(node, matrix)
        still_used = {name for node in self.nodes for name in node.input}
        kept = [each for each in self.weights.values() if each.name in still_used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(kept)

    def matmul_half(self, node: onnx.NodeProto, weight_KN: np.ndarray) -> None:
        half = self._constant(f"{node.input[1]}.half", weight_KN.astype(np.float16))
        wide = self._add("Cast", [half], f"{node.input[1]}.wide", to=onnx.TensorProto.FLOAT)
        self._add("MatMul", [node.input[0], wide], node.output[0])

    def gather_half(self, node: onnx.NodeProto, table_VC: np.ndarray) -> None:
        half = self._constant(f"{node.input[0]}.half", table_VC.astype(np.float16))
        rows = self._add("Gather", [half, node.input[1]], f"{node.output[0]}.half", axis=0)
        self._add("Cast", [rows], node.output[0], to=onnx.TensorProto.FLOAT)

    def matmul_int8(self, node: onnx.NodeProto, weight_KN: np.ndarray) -> None:
        scale_N = _scale(weight_KN, axis=0)
        weight = self._constant(f"{node.input[1]}.int8", np.rint(weight_KN / scale_N).astype(np.int8))
        scale = self._constant(f"{node.input[1]}.scale", scale_N[0])
        rows, peak = self._quantised_rows(node.input[0])
        step, middle = self._constant("step", np.float32(1 / 127)), self._constant("middle", np.uint8(128))
        out = node.output[0]
        inputs = [rows, weight, step, scale, middle]
        self._add("MatMulIntegerToFloat", inputs, f"{out}.of_peak", domain=_CONTRIB)
        self._add("Mul", [f"{out}.of_peak", peak], out)

    def gather_int8(self, node: onnx.NodeProto, table_VC: np.ndarray) -> None:
        scale_V = _scale(table_VC, axis=1)
        table = self._constant(f"{node.input[0]}.table.int8", np.rint(table_VC / scale_V).astype(np.int8))
        scales = self._constant(f"{node.input[0]}.table.scale", scale_V)
        out = node.output[0]
        rows = self._add("Gather", [table, node.input[1]], f"{out}.looked_up.int8", axis=0)
        scale = self._add("Gather", [scales, node.input[1]], f"{out}.looked_up.scale", axis=0)
        wide = self._add("Cast", [rows], f"{out}.looked_up.wide", to=onnx.TensorProto.FLOAT)
        self._add("Mul", [wide, scale], out)

    def matmul_int4(self, node: onnx.NodeProto, weight_KN: np.ndarray) -> None:
        packed_NKB, scale_NK = _four_bits(weight_KN.T)
        weight = self._constant(f"{node.input[1]}.int4", packed_NKB)
        scale = self._constant(f"{node.input[1]}.scale", scale_NK.reshape(-1))
        size = {"K": weight_KN.shape[0], "N": weight_KN.shape[1], "bits": 4, "block_size": _BLOCK}
        # Level 4 multiplies integers: eight bits for the activations, with a scale for each block of a row.
        self._add(
            "MatMulNBits", [node.input[0], weight, scale], node.output[0], domain=_CONTRIB, accuracy_level=4, **size
        )

    def gather_int4(self, node: onnx.NodeProto, table_VC: np.ndarray) -> None:
        if table_VC.shape[1] % _BLOCK:
            self.gather_int8(node, table_VC)
            return
        packed_VKB, scale_VK = _four_bits(table_VC)
        table = self._constant(f"{node.input[0]}.table.int4", packed_VKB.reshape(len(table_VC), -1))
        scale = self._constant(f"{node.input[0]}.table.scale", scale_VK)
        options = {"bits": 4, "block_size": _BLOCK, "gather_axis": 0, "quantize_axis": 1}
        self._add("GatherBlockQuantized", [table, node.input[1], scale], node.output[0], domain=_CONTRIB, **options)

    def _quantised_rows(self, name: str) -> tuple[str, str]:
        """Activations in eight bits as shares of the largest one of their row; and those largest ones, [..., 1]."""
        if name not in self._rows:
            size = self._add("Abs", [name], f"{name}.activation.abs")
            last = self._constant("last_axis", np.array([-1]))
            largest = self._add("ReduceMax", [size, last], f"{name}.activation.largest", keepdims=1)
            peak = self._add("Max", [largest, self._constant("least", np.float32(1e-30))], f"{name}.activation.peak")
            shares = self._add("Div", [name, peak], f"{name}.activation.shares")
            step, middle = self._constant("step", np.float32(1 / 127)), self._constant("middle", np.uint8(128))
            rows = self._add("QuantizeLinear", [shares, step, middle], f"{name}.activation.rows")
            self._rows[name] = (rows, peak)
        return self._rows[name]

    def _matrix(self, name: str) -> np.ndarray | None:
        found = self.weights.get(name)
        if found is None or len(found.dims) != 2 or found.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(found)

    def _constant(self, name: str, array: np.ndarray | np.generic) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _add(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        if output not in self._used:
            self._used.add(output)
            self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output


def _scale(matrix: np.ndarray, *, axis: int) -> np.ndarray:
    """What one step of an int8 stands for, for each slice along the other axis."""
    peak: np.ndarray = np.abs(matrix).max(axis=axis, keepdims=True)
    return np.maximum(peak / np.float32(127), np.float32(1e-30))


def _four_bits(matrix_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack rows into blocks of four-bit numbers around 8, two to a byte, with a scale for each block.

    Steps go from -8 to 7; the sign of a scale is such that the largest weight of its block is the -8.
    """
    num_rows, width = matrix_NK.shape
    num_blocks = -(-width // _BLOCK)
    blocks = np.zeros((num_rows, num_blocks * _BLOCK), np.float32)
    blocks[:, :width] = matrix_NK
    blocks = blocks.reshape(num_rows, num_blocks, _BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(-8))
    steps = np.clip(np.rint(blocks / scale) + 8, 0, 15).astype(np.uint8)
    return steps[:, :, ::2] | steps[:, :, 1::2] << 4, scale[:, :, 0].astype(np.float32)
