"""Load the compositions that one engine answers for; what is frozen is loaded once for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from calm_graph.declare.files import stored_cards
from calm_graph.errors import InputError
from calm_graph.model.composed import ComposedModel
from registry import ModelCard, Registry
from registry.weights import loaded_once

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_session import OnnxSettings


def load_models(
    checkpoints: Iterable[tuple[str | None, str | os.PathLike[str]]],
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    exports: Iterable[str | os.PathLike[str]] = (),
    remotes: Mapping[str, str | ModelCard] | None = None,
    onnx: OnnxSettings | None = None,
) -> dict[str, ComposedModel]:
    """Load compositions by name.

    Args:
        checkpoints: Name, and folder or hub id; without a name it is that of the composition.
        registry: As in `from_pretrained`.
        dtype: As in `from_pretrained`.
        device: For everything; None leaves it on the CPU.
        exports: ONNX exports, each for the compositions that have the augmenter it was made from.
        remotes: Services, each for the compositions that have the augmenter it runs.
        onnx: As in `from_pretrained`.

    Returns:
        The models, in the given order.

    Raises:
        InputError: Two have one name, or a service is of no augmenter.
        CheckpointError: As `from_pretrained` says.
    """
    remotes = remotes or {}
    used: set[str] = set()
    models: dict[str, ComposedModel] = {}
    with loaded_once():
        for given, checkpoint in checkpoints:
            known = {card.name for card in stored_cards(os.fspath(checkpoint))}
            model = ComposedModel.from_pretrained(
                checkpoint,
                registry=registry,
                dtype=dtype,
                device_map=device,
                exports=exports,
                remotes={name: service for name, service in remotes.items() if not known or name in known},
                onnx=onnx,
            )
            used.update(run.card.name for run in model.plan)
            name = given or model.plan.composition.name
            if name in models:
                raise InputError(f"checkpoints: two are called {name!r}; give them names, as in NAME={checkpoint}")
            models[name] = model
    if unused := sorted(remotes.keys() - used):
        raise InputError(f"remotes: got {unused[0]!r}, but the compositions read {', '.join(sorted(used))}")
    return models
