"""From a checkpoint's description to the model it describes, on the frozen models that it was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from calm_graph.declare.composition import Composition
from calm_graph.errors import CheckpointError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.checks import at_runtime
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.remote import described, remote_card, without_access
from registry.weights import find_files, identity

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_session import OnnxSettings

_SAME_STATES = 0.99999
"""Mean cosine above which states count as the same; what float32 exports reach."""


def build_from_description(
    description: Mapping[str, Any],
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | None = None,
    attachment_dtype: torch.dtype = torch.float32,
    exports: Iterable[str | Path] = (),
    remotes: Mapping[str, str | ModelCard] | None = None,
    onnx: OnnxSettings | None = None,
    where: str,
) -> ComposedModel:
    """Build the model that a checkpoint describes, on the frozen models it was made for.

    Args:
        description: Content of composition.json.
        registry: As in `build_model`; cards it does not have are taken from the description.
        dtype: As in `build_model`.
        attachment_dtype: As in `build_model`.
        exports: Folders of ONNX exports, to run in place of the augmenters they were made from.
        remotes: Augmenter -> address or card of the service that runs it.
        onnx: As in `build_model`.
        where: The checkpoint, for errors.

    Returns:
        The model, its attachments fresh.

    Raises:
        CheckpointError: The description is damaged, or a frozen model here is not the one the composition was trained
            with.
    """
    try:
        stored = {name: ModelCard(**card) for name, card in description["models"].items()}
    except ValidationError as error:
        raise CheckpointError(f"{where}: damaged: the card of one of its models cannot be read ({error})") from error
    cards = Registry(default_registry if registry is None else registry)
    for name, card in stored.items():
        if name not in cards:
            # The fingerprint of torch files is compared below; an export has no other proof of what it is.
            if card.runtime == "torch":
                card = card.model_copy(update={"fingerprint": None})
            cards.add(without_access(card))
    for folder in exports:
        cards.add(_stand_in(folder, stored, where), replace=True)
    for name, service in (remotes or {}).items():
        cards.add(_remote_stand_in(name, service, stored, where), replace=True)
    composition = Composition.parse(description["composition"], where=where)
    run = {name: _card_at_runtime(composition, name, cards) for name in stored}
    problems = [
        f"{name!r} was {stored[name].fingerprint} and is {found} in "
        f"{card.location if card.runtime == 'remote' else find_files(card)}"
        for name, card in run.items()
        if (found := identity(card)) != stored[name].fingerprint
    ]
    if problems:
        raise CheckpointError(
            f"{where}: trained with other frozen models: {'; '.join(problems)}. "
            "Put the same files back, or register them under that name"
        )
    for name, card in run.items():
        _warn_of_shifted_states(stored[name], card)
    return build_model(composition, registry=cards, dtype=dtype, attachment_dtype=attachment_dtype, onnx=onnx)


def _stand_in(folder: str | Path, stored: Mapping[str, ModelCard], where: str) -> ModelCard:
    """The card of an export under the name of the model that it stands in for."""
    from calm_graph.augmenters.onnx_session import read_export

    card = read_export(folder)
    for name, known in stored.items():
        if known.fingerprint == card.fingerprint:
            return card.model_copy(update={"name": name})
    known_models = ", ".join(f"{name!r} {card.fingerprint}" for name, card in stored.items())
    raise CheckpointError(
        f"{folder}: was exported from {card.fingerprint}, but {where} was trained with {known_models}; "
        "export the model that the composition was trained with"
    )


def _remote_stand_in(name: str, service: str | ModelCard, stored: Mapping[str, ModelCard], where: str) -> ModelCard:
    """The card of a service under the name of the model that it stands in for."""
    if name not in stored:
        raise CheckpointError(f"remotes: got {name!r}, but {where} has the models {', '.join(map(repr, stored))}")
    card = remote_card(name, service) if isinstance(service, str) else service.model_copy(update={"name": name})
    if card.runtime != "remote":
        raise CheckpointError(f"remotes[{name!r}]: got a card of {card.source}, which is no service; write its address")
    card = described(card)
    if card.fingerprint != stored[name].fingerprint:
        raise CheckpointError(
            f"remotes[{name!r}]: the service {card.location} runs {card.fingerprint}, but {where} was trained with "
            f"{stored[name].fingerprint}; ask its owner for that one"
        )
    return card


def _card_at_runtime(composition: Composition, name: str, cards: Registry) -> ModelCard:
    """The card that runs under this name: an augmenter may ask for its export."""
    card = cards.get(name)
    for augmenter in composition.augmenters:
        if augmenter.key == name:
            return at_runtime(card, augmenter.runtime, cards, name)[0] or card
    return card


def _warn_of_shifted_states(trained: ModelCard, card: ModelCard) -> None:
    """Say so when attachments will read other states than they were trained on."""
    if trained.onnx == card.onnx:
        return
    cosines = [
        *(trained.onnx.cosine.values() if trained.onnx else ()),
        *(card.onnx.cosine.values() if card.onnx else ()),
    ]
    if min(cosines) < _SAME_STATES:
        runs, read = (
            f"{each.onnx.precision} in ONNX" if each.onnx else f"in {each.runtime}" for each in (card, trained)
        )
        warnings.warn(
            f"augmenter {card.name!r} runs {runs}, but the attachments were trained on it {read}: "
            f"cosine of the states {min(cosines):.4f}; measure what that costs",
            stacklevel=2,
        )
