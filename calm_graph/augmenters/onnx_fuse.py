"""Fewer and larger operators for the same numbers: what a step of a small model waits for is the number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def fuse(model: onnx.ModelProto) -> None:
    """Rewrite what the exporter makes of transformers' blocks, in place; what looks different stays as it is.

    - matrices that multiply the same states become one (queries, keys and values; the gate and its sibling);
    - the seven operators of an RMS norm and of a rotary position become one each;
    - queries that share keys are multiplied with them together, instead of with copies of them.

    Args:
        model: A float32 graph whose weights are in memory.
    """
    for rewrite in (_join_products, _fuse_norms, _fuse_rotary, _group_queries):
        rewrite(_Graph(model.graph))


class _Graph:
    """A graph in which one can go from a value to who made it and who reads it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.proto = graph
        self.weights = {each.name: each for each in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {each.name for each in graph.output}

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type == operator else None

    def chain(self, name: str, *operators: str) -> onnx.NodeProto | None:
        """The last of some operators, each of which made the first operand of the one before."""
        node = None
        for operator in operators:
            if (node := self.made_by(name, operator)) is None:
                return None
            name = node.input[0]
        return node

    def either(self, node: onnx.NodeProto, operator: str) -> tuple[onnx.NodeProto, str] | None:
        """The operand that `operator` made, and the other one."""
        for name, other in (tuple(node.input), tuple(reversed(node.input))):
            if (found := self.made_by(name, operator)) is not None:
                return found, other
        return None

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def values(self, name: str) -> np.ndarray | None:
        found = self.weights.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def scalar(self, name: str) -> float | None:
        found = self.values(name)
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None

    def constant(self, name: str, array: np.ndarray) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def replace(self, changes: dict[str, list[onnx.NodeProto]]) -> None:
        """Put nodes in the place of those that made some values, and drop what nobody reads any more."""
        nodes: list[onnx.NodeProto] = []
        for node in self.proto.node:
            nodes += changes.get(node.output[0], [node])
        count = Counter(name for node in nodes for name in node.input)
        kept = []
        for node in reversed(nodes):
            if any(count[name] or name in self.outputs for name in node.output):
                kept.append(node)
            else:
                count.subtract(node.input)
        weights = [each for each in self.weights.values() if count[each.name]]
        del self.proto.node[:], self.proto.initializer[:]
        self.proto.node.extend(reversed(kept))
        self.proto.initializer.extend(weights)


def _join_products(graph: _Graph) -> None:
    changes: dict[str, list[onnx.NodeProto]] = {}
    groups: dict[str, list[tuple[onnx.NodeProto, np.ndarray]]] = {}
    for node in graph.proto.node:
        if node.op_type == "MatMul":
            weight = graph.values(node.input[1])
            if weight is not None and weight.ndim == 2:
                groups.setdefault(node.input[0], []).append((node, weight))
    for source, members in groups.items():
        if len(members) == 1:
            continue
        outputs = [node.output[0] for node, _ in members]
        name = f"{outputs[0]}.joined"
        joined = graph.constant(f"{name}.weight", np.concatenate([each for _, each in members], axis=1))
        sizes = graph.constant(f"{name}.sizes", np.array([each.shape[1] for _, each in members]))
        changes |= {output: [] for output in outputs}
        changes[outputs[0]] = [
            _node("MatMul", [source, joined], [name]),
            _node("Split", [name, sizes], outputs, axis=-1),
        ]
    graph.replace(changes)


def _fuse_norms(graph: _Graph) -> None:
    """Norms: x * rsqrt(mean(x ** 2) + epsilon) * weight."""
    changes = {}
    for node in graph.proto.node:
        if node.op_type != "Mul" or (found := graph.either(node, "Mul")) is None:
            continue
        (scaled, weight), values = found, graph.values(found[1])
        if values is None or values.ndim != 1 or (found := graph.either(scaled, "Reciprocal")) is None:
            continue
        inverse, states = found
        total = graph.chain(inverse.input[0], "Sqrt", "Add")
        mean = None if total is None else graph.made_by(total.input[0], "ReduceMean")
        square = None if mean is None else graph.made_by(mean.input[0], "Pow")
        if total is None or mean is None or square is None or square.input[0] != states:
            continue
        axes, epsilon = graph.values(mean.input[1]), graph.scalar(total.input[1])
        if axes is not None and [*axes] == [-1] and epsilon is not None and graph.scalar(square.input[1]) == 2:
            (out,) = node.output
            changes[out] = [_node("RMSNormalization", [states, weight], [out], axis=-1, epsilon=epsilon)]
    graph.replace(changes)


def _fuse_rotary(graph: _Graph) -> None:
    """Positions: x * cos + concat(-second half of x, first half of x) * sin."""
    changes: dict[str, list[onnx.NodeProto]] = {}
    if all(each.name != "position_ids" for each in graph.proto.input):
        return  # one row of tables serves the whole batch, but the fused operator wants one for each text
    for node in graph.proto.node:
        if node.op_type != "Add":
            continue
        for plain, turned in (tuple(node.input), tuple(reversed(node.input))):
            first, second = graph.made_by(plain, "Mul"), graph.made_by(turned, "Mul")
            found = None if second is None else graph.either(second, "Concat")
            states = None if found is None else _turned(graph, found[0])
            if first is None or found is None or states not in first.input:
                continue
            cos = _table(graph, "Cos", next(name for name in first.input if name != states))
            sin = _table(graph, "Sin", found[1])
            if cos is None or sin is None:
                continue
            halves = []
            for table in (cos, sin):
                (name,) = table.output
                halves.append(f"{name}.half")
                changes[name] = [table, _node("Split", [name], [halves[-1], f"{name}.rest"], axis=-1, num_outputs=2)]
            (out,) = node.output
            changes[out] = [_node("RotaryEmbedding", [str(states), *halves], [out])]
    graph.replace(changes)


def _turned(graph: _Graph, joined: onnx.NodeProto) -> str | None:
    """What a Concat holds the halves of: the second one, negative, before the first one."""
    first = graph.made_by(joined.input[-1], "Slice")
    second = graph.chain(joined.input[0], "Neg", "Slice")
    if first is None or second is None or first.input[0] != second.input[0]:
        return None
    start, end = graph.scalar(first.input[1]), graph.scalar(first.input[2])
    return first.input[0] if start == 0 and end == graph.scalar(second.input[1]) else None


def _table(graph: _Graph, operator: str, name: str) -> onnx.NodeProto | None:
    """Cosines or sines [B, S, H], whose halves are the same, behind an axis for the heads."""
    heads = graph.made_by(name, "Unsqueeze")
    table = None if heads is None else graph.makers.get(heads.input[0])
    if table is None:
        return None
    # Some ways to stretch positions scale both tables.
    found = graph.either(table, operator) if table.op_type == "Mul" else (table, "")
    angles = None if found is None or found[0].op_type != operator else graph.made_by(found[0].input[0], "Concat")
    return table if angles is not None and len(angles.input) == 2 and len({*angles.input}) == 1 else None


def _group_queries(graph: _Graph) -> None:
    """Queries [B, N, S, H] times keys that are repeated from [B, K, L, H]; and attention times values likewise."""
    changes: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.proto.node:
        if node.op_type != "MatMul":
            continue
        turned = graph.made_by(node.input[1], "Transpose")
        found = _repeated(graph, node.input[1] if turned is None else turned.input[0])
        if found is None:
            continue
        shared, num_shared, num_heads = found
        inward = graph.constant(f"heads.{num_shared}", np.array([0, num_shared, -1, 0]))
        outward = graph.constant(f"heads.{num_heads}", np.array([0, num_heads, -1, 0]))
        (out,) = node.output
        made = [_node("Reshape", [node.input[0], inward], [f"{out}.queries"])]
        if turned is not None:
            made.append(_node("Transpose", [shared], [f"{out}.turned"], perm=[0, 1, 3, 2]))
            shared = f"{out}.turned"
        made.append(_node("MatMul", [f"{out}.queries", shared], [f"{out}.grouped"]))
        # ONNX Runtime multiplies and scales in one operator where nothing stands between.
        scale = graph.only_reader(out)
        last = f"{out}.grouped"
        if scale is not None and scale.op_type == "Mul" and graph.scalar(scale.input[1]) is not None:
            made.append(_node("Mul", [last, scale.input[1]], [f"{out}.scaled"]))
            last, (out,) = f"{out}.scaled", scale.output
        made.append(_node("Reshape", [last, outward], [out]))
        changes |= {node.output[0]: [], out: made}
    graph.replace(changes)


def _repeated(graph: _Graph, name: str) -> tuple[str, int, int] | None:
    """What is repeated [B, K, L, H], K and N, if a value [B, N, L, H] is a repetition."""
    flat = graph.made_by(name, "Reshape")
    wide = graph.chain(name, "Reshape", "Expand")
    one = graph.chain(name, "Reshape", "Expand", "Unsqueeze")
    if flat is None or wide is None or one is None or graph.scalar(one.input[1]) != 2:
        return None
    heads, shape = graph.made_by(flat.input[1], "Concat"), graph.made_by(wide.input[1], "Concat")
    if heads is None or shape is None or len(heads.input) != 4 or len(shape.input) != 5:
        return None
    num_heads, num_shared, copies = (graph.scalar(each) for each in (heads.input[1], *shape.input[1:3]))
    if num_heads is None or num_shared is None or copies is None or num_heads != num_shared * copies:
        return None
    return one.input[0], int(num_shared), int(num_heads)


def _node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)
