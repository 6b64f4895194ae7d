"""The model behind an augmenter's service: token ids in, states of layers out. An ONNX export needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calm_graph.errors import DeclarationError, Problem
from calm_graph.serve.augmenter_settings import AugmenterSettings
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.fingerprint import tokenizer_fingerprint
from registry.layouts import COMPOSITION
from registry.remote import TOKENIZER_FILES, AugmenterFacts
from registry.weights import find_files, identity

Run = Callable[[np.ndarray, np.ndarray, Sequence[int]], dict[int, np.ndarray]]
"""ids_BS, real_BS, layers -> states [B, S, C] by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmenterModel:
    """A frozen model that is read.

    Args:
        facts: What is said of it.
        tokenizer: File name -> content.
        run: Runs it.
    """

    facts: AugmenterFacts
    tokenizer: Mapping[str, str]
    run: Run

    def read(self, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """Run it on rows together.

        Args:
            rows: Token ids.
            layers: Those to return.

        Returns:
            For each row, layer -> states, float [N, C].
        """
        width = max(map(len, rows))
        ids_BS = np.zeros((len(rows), width), np.int64)
        real_BS = np.zeros((len(rows), width), bool)
        for row, ids in enumerate(rows):
            ids_BS[row, width - len(ids) :] = ids
            real_BS[row, width - len(ids) :] = True
        states = self.run(ids_BS, real_BS, layers)
        return [{layer: states[layer][row, width - len(ids) :] for layer in layers} for row, ids in enumerate(rows)]


def load_augmenter(settings: AugmenterSettings) -> AugmenterModel:
    """Load the model that is served.

    Args:
        settings: Of the service.

    Raises:
        DeclarationError: The settings do not fit the model.
        OnnxError: The export cannot be used.
        RegistryError: The model cannot be found, or is not what its card says.
    """
    card = _card(settings)
    layers = _layers(settings, card)
    folder = find_files(card)
    if not (folder / TOKENIZER_FILES[0]).is_file():
        lack = f"got {card.name!r}, which has no {TOKENIZER_FILES[0]} in {folder}; save its tokenizer in that form"
        raise DeclarationError([Problem("settings.name", lack)], where="augmenter service")
    given = {name for name in AugmenterFacts.model_fields if name in ModelCard.model_fields}
    said = {name: value for name, value in card.model_dump(include=given).items() if value is not None}
    facts = AugmenterFacts(
        **said
        | {
            "name": settings.name,
            "fingerprint": identity(card),
            "tokenizer_fingerprint": tokenizer_fingerprint(folder),
            "layers": layers,
            "max_tokens": settings.max_tokens,
        }
    )
    tokenizer = {name: (folder / name).read_text("utf-8") for name in TOKENIZER_FILES if (folder / name).is_file()}
    run = _onnx_run(card, settings) if card.runtime == "onnx" else _torch_run(card, layers, settings)
    return AugmenterModel(facts=facts, tokenizer=tokenizer, run=run)


def _card(settings: AugmenterSettings) -> ModelCard:
    if settings.onnx is not None:
        from calm_graph.augmenters.onnx_session import read_export

        card = read_export(settings.onnx)
    else:
        registry = Registry(default_registry)
        for registered in settings.registries:
            registry.add_folder(registered)
        card = registry.get(settings.name)
    if card.modality != "text" or card.architecture == COMPOSITION or card.runtime == "remote":
        kind = f"a model of {card.modality}" if card.modality != "text" else "a service or a composition"
        raise _problem("name", f"got {card.name!r}, {kind}, but an augmenter's service runs one model of text")
    return card


def _layers(settings: AugmenterSettings, card: ModelCard) -> tuple[int, ...]:
    there = tuple(range(card.num_layers or 0)) if card.onnx is None else card.onnx.layers
    layers = settings.layers or (there if card.onnx is not None else ())
    if not layers:
        raise _problem("layers", "is empty; name the layers that may be read, such as 3,7,11")
    if wrong := sorted(set(layers) - set(there)):
        have = f"0..{len(there) - 1}" if card.onnx is None else ", ".join(map(str, there))
        raise _problem("layers", f"got {', '.join(map(str, wrong))}, but {card.name!r} has layers {have}")
    return tuple(sorted(set(layers)))


def _torch_run(card: ModelCard, layers: tuple[int, ...], settings: AugmenterSettings) -> Run:
    import torch

    from calm_graph.augmenters.torch_backend import TorchBackend
    from registry.weights import load_body

    if settings.num_cpus is not None:
        torch.set_num_threads(max(1, int(settings.num_cpus)))
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    backend = TorchBackend(
        load_body(card, layers[-1] + 1, dtype=dtype), name=card.name, context_length=card.context_length
    )
    backend.to("cuda" if settings.num_gpus else "cpu")

    def run(ids_BS: np.ndarray, real_BS: np.ndarray, layers: Sequence[int]) -> dict[int, np.ndarray]:
        device = backend.device
        ids, real = torch.from_numpy(ids_BS).to(device), torch.from_numpy(real_BS).to(device)
        with torch.inference_mode():
            states = backend.read_tokens(ids, real, known_at_BS=ids, taps=frozenset(layers), writes={})
        return {layer: state.float().cpu().numpy() for layer, state in states.items()}

    return run


def _onnx_run(card: ModelCard, settings: AugmenterSettings) -> Run:
    from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider") if settings.num_gpus else None
    options: dict[str, Any] = {} if providers is None else {"providers": providers}
    num_threads = None if settings.num_cpus is None else max(1, int(settings.num_cpus))
    session = OnnxSession(card, OnnxSettings(num_threads=num_threads, **options))

    def run(ids_BS: np.ndarray, real_BS: np.ndarray, layers: Sequence[int]) -> dict[int, np.ndarray]:
        inputs = {
            "input_ids": ids_BS,
            "attention_mask": real_BS,
            "position_ids": (real_BS.cumsum(axis=1) - 1).clip(min=0),
        }
        feeds = {name: each.astype(session.inputs[name]) for name, each in inputs.items() if name in session.inputs}
        feeds |= session.empty_past(len(ids_BS))
        names = {layer: session.state(layer) for layer in layers}
        found = session.run(feeds, names.values())
        return {layer: found[name].astype(np.float32) for layer, name in names.items()}

    return run


def _problem(field: str, message: str) -> DeclarationError:
    return DeclarationError([Problem(f"settings.{field}", message)], where="augmenter service")
