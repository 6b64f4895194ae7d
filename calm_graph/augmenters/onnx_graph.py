"""From a frozen torch model to an ONNX graph that ends after the last layer that is read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from calm_graph.augmenters.onnx_fuse import fuse
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import BlockCall, during
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.errors import OnnxError
from registry import ModelCard

if TYPE_CHECKING:
    import onnx

OPSET = 23
"""The first with RMS norms and rotary positions. Its fused attention is slower than grouped products (`onnx_fuse`)."""

TEXT_INPUTS = ("input_ids", "attention_mask", "position_ids")


class _Graph(nn.Module):
    """The model as a function of tensors alone: inputs in, states of the layers out; keys and values in and out."""

    def __init__(self, body: nn.Module, names: Sequence[str], layers: Sequence[int], *, keeps: bool) -> None:
        super().__init__()
        self.body = body
        self.names = tuple(names)
        self.layers = tuple(layers)
        self.keeps = keeps

    def forward(self, inputs: list[torch.Tensor], past: list[torch.Tensor]) -> list[torch.Tensor]:
        arguments: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        cache = RaggedCache()
        if self.keeps:
            for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(keys, values, layer)
            arguments |= {"past_key_values": cache, "use_cache": True}
        call = BlockCall(taps=frozenset(self.layers))
        with during(call):
            self.body(**arguments)
        return [call.states[layer] for layer in self.layers] + cache.keys_values()


def export_graph(backend: TorchBackend, card: ModelCard, layers: Sequence[int], *, keeps: bool) -> onnx.ModelProto:
    """Trace a model.

    Args:
        backend: The frozen model in float32, with no block above the last layer.
        card: Its card.
        layers: Layers whose states are returned, ascending.
        keeps: Whether keys and values go in and out.

    Returns:
        A graph with inputs `input_ids`, ... and `past.I.key`, `past.I.value`; outputs `state.I` and `present.I.key`,
        `present.I.value`. Batch, length and number of earlier slots are free, and the last may be 0.

    Raises:
        OnnxError: The architecture cannot be traced.
    """
    body: Any = backend.body
    inputs, dims = _example(backend, card, keeps=keeps)
    past: list[torch.Tensor] = []
    if keeps:
        past = _example_past(backend, card)
        dims["past"] = [{0: _BATCH, 2: torch.export.Dim("past")} for _ in past]
    module = _Graph(body, [*inputs], layers, keeps=keeps).eval()
    pairs = [f"{index}.{kind}" for index in range(len(past) // 2) for kind in ("key", "value")]
    attention = body.config._attn_implementation
    try:
        body.set_attn_implementation("eager")  # fewer nodes than sdpa becomes, and no slower in ONNX Runtime
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                ([*inputs.values()], past),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=([dims[name] for name in inputs], dims.get("past", [])),
                input_names=[*inputs, *(f"past.{pair}" for pair in pairs)],
                output_names=[*(f"state.{layer}" for layer in layers), *(f"present.{pair}" for pair in pairs)],
                verbose=False,
            )
    except Exception as error:  # every operator and every model has its own way to fail
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own message only says at which of its stages it stopped
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or ["no reason given"])[0]
        raise OnnxError(
            f"{card.name!r} ({card.architecture}) does not export to ONNX: {type(cause).__name__}: {reason}; "
            "run it in torch"
        ) from error
    finally:
        body.set_attn_implementation(attention)
    assert program is not None
    model = _stripped(program.model_proto)
    fuse(model)
    return model


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter notes about each node: larger than a small model, and full of this machine's paths."""
    del model.graph.value_info[:]
    for item in (model, model.graph, *model.graph.node, *model.graph.initializer):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    return model


_BATCH = torch.export.Dim("batch")


def _example(backend: TorchBackend, card: ModelCard, *, keeps: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs to trace with, and which of their axes are free. Sizes of 1 would be taken for constants."""
    if card.modality == "image":
        config: Any = backend.body.config
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(2, config.num_channels, height, width)}, {"pixel_values": {0: _BATCH}}
    if card.modality == "features":
        samples = torch.export.Dim("samples")
        return {"input_values": torch.zeros(2, 8000)}, {"input_values": {0: _BATCH, 1: samples}}
    length = torch.export.Dim("length")
    num_old = 4 if keeps else 0
    example = {
        "input_ids": torch.full((2, 3), 5),
        "attention_mask": torch.ones(2, num_old + 3, dtype=torch.int64),
        "position_ids": torch.arange(num_old, num_old + 3).repeat(2, 1),
    }
    dims = {name: {0: _BATCH, 1: length} for name in example}
    if keeps:
        dims["attention_mask"] = {0: _BATCH, 1: torch.export.Dim.DYNAMIC}
    taken = [name for name in TEXT_INPUTS if name in backend.inputs()]
    return {name: example[name] for name in taken}, {name: dims[name] for name in taken}


def _example_past(backend: TorchBackend, card: ModelCard) -> list[torch.Tensor]:
    cache = RaggedCache()
    ids = torch.full((2, 4), 5)
    try:
        with torch.no_grad():
            backend.body(input_ids=ids, past_key_values=cache, use_cache=True)
        past = cache.keys_values()
        usable = bool(past) and all(each.ndim == 4 and each.shape[2] == 4 for each in past)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        usable = False
    if not usable:
        raise OnnxError(
            f"{card.name!r} ({card.architecture}) does not export to ONNX for stepping: what it keeps between "
            "tokens is not keys and values; export it with --reading prompt, or run it in torch"
        )
    return [each.contiguous() for each in past]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports names of axes that it merges and versions of operators that it lacks."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
