"""From a plan to a model: load what is frozen, choose how each augmenter reads, put the attachments in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.declare.composition import Composition
from calm_graph.declare.description import read_description
from calm_graph.declare.files import stored_cards
from calm_graph.declare.settings import Sharding
from calm_graph.errors import CheckpointError, InputError
from calm_graph.model.alignment import Reader, SharedReader, TextReader
from calm_graph.model.augmenter_graph import AugmenterGraph
from calm_graph.model.checkpoint import copy_exactly, read_tensors
from calm_graph.model.composed import ComposedModel
from calm_graph.model.config import CalmGraphConfig
from calm_graph.model.placement import devices
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.plan.checks import at_runtime
from calm_graph.plan.graph import make_plan
from calm_graph.plan.parts import Plan, PlannedRun
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.fingerprint import tokenizer_fingerprint
from registry.remote import described, remote_card, without_access
from registry.weights import find_files, identity, load_body, load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_session import OnnxSettings

_SAME_STATES = 0.99999
"""Mean cosine above which states count as the same; what float32 exports reach."""


def build_model(
    composition: Composition | Plan,
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | None = None,
    attachment_dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    load_augmenters: bool = True,
    onnx: OnnxSettings | None = None,
    sharding: Sharding = "none",
    placement: Mapping[str, str] | None = None,
) -> ComposedModel:
    """Load the frozen models of a composition and put fresh attachments between them.

    Args:
        composition: The declaration, or its plan.
        registry: Where names are looked up; None is the default registry.
        dtype: Of the frozen weights; None keeps what their files hold.
        attachment_dtype: Of the attachments.
        seed: Of the attachments' initialisation; None takes torch's current state.
        load_augmenters: Whether the augmenters' weights are read; without them each call needs `stored_states`.
        onnx: Threads and providers of augmenters that run in ONNX Runtime; None: the CPU, as many threads as torch.
        sharding: `fsdp`: the processes of torch.distributed's default group share each frozen model, and every one of
            them calls this. A process holds its part of the weights and, while a block runs, that block whole.
        placement: Name of a model -> its device, such as `cuda:1`; without a name in it, a model goes with the anchor.
            Attachments go with the model they write into, and only the states they read cross over. None leaves all
            where they were loaded.

    Returns:
        A model that computes exactly what its anchor computes, until its attachments are trained.

    Raises:
        DeclarationError: The composition has mistakes; all are listed.
        RegistryError: A model cannot be found or is not what its card says.
        InputError: A tokenizer cannot be used, or sharding or a placement is not possible here.
        OnnxError: An ONNX export is damaged, or its provider is not there.
    """
    plan = composition if isinstance(composition, Plan) else make_plan(composition, registry=registry)
    num_shards = _num_shards(sharding)
    if num_shards > 1 and placement:
        raise InputError("placement: got one together with sharding='fsdp', which spreads every model; leave one out")
    where = devices(plan, placement) if placement else {}  # before anything is loaded
    anchor = load_causal_lm(plan.anchor.card, dtype=dtype, num_shards=num_shards)
    tokenizer = load_tokenizer(plan.anchor.card)
    checkpoints = nested_checkpoints(plan, default_registry if registry is None else registry)
    graph = build_graph(
        plan,
        tokenizer=tokenizer,
        checkpoints=checkpoints,
        dtype=dtype,
        attachment_dtype=attachment_dtype,
        seed=seed,
        load_augmenters=load_augmenters,
        onnx=onnx,
        num_shards=num_shards,
    )
    if where:
        anchor.to(where[plan.anchor.name])  # type: ignore[arg-type]
        graph.place(where)
    config = CalmGraphConfig(
        # Where the anchor lies on this machine is nobody's business elsewhere.
        anchor_config={key: value for key, value in anchor.config.to_dict().items() if key != "_name_or_path"},
        architectures=[ComposedModel.__name__],
        dtype=anchor.dtype,
    )
    return ComposedModel(config, anchor=anchor, graph=graph, tokenizer=tokenizer, checkpoints=checkpoints.values())


def build_graph(
    plan: Plan,
    *,
    tokenizer: Any,
    checkpoints: Mapping[str, ModelCard],
    dtype: torch.dtype | None = None,
    attachment_dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    load_augmenters: bool = True,
    onnx: OnnxSettings | None = None,
    num_shards: int = 1,
) -> AugmenterGraph:
    """Load the augmenters of a plan and put the attachments between them, fresh or from nested checkpoints.

    Args:
        plan: What runs.
        tokenizer: The anchor's.
        checkpoints: What `nested_checkpoints` finds for the plan.
        dtype: As in `build_model`.
        attachment_dtype: As in `build_model`.
        seed: As in `build_model`.
        load_augmenters: As in `build_model`.
        onnx: As in `build_model`.
        num_shards: How many processes share each frozen model.

    Returns:
        Everything of the composed model but its anchor.
    """
    augmenters = [run for run in plan.runs if not run.is_anchor]
    backends = _load_backends(augmenters, dtype, onnx, num_shards) if load_augmenters else {}
    # Loading draws random numbers, too: seeded after it, attachments are the same with and without augmenters.
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        graph = AugmenterGraph(plan, backends=backends, readers=text_readers(plan, tokenizer))
    graph.edges.attachments.to(attachment_dtype)
    for name, card in checkpoints.items():
        _load_nested(graph, name, find_files(card))
    return graph


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
        num_shards: How many processes share each frozen model.
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


def nested_checkpoints(plan: Plan, registry: Registry) -> dict[str, ModelCard]:
    """Return the cards of the trained compositions in a plan; an inner one may be known to the one around it only."""
    names = {planned.checkpoint for planned in plan.attachments if planned.checkpoint is not None}
    cards = Registry(registry)
    found: dict[str, ModelCard] = {}
    while new := [name for name in sorted(names - found.keys()) if name in cards]:
        for name in new:
            found[name] = cards.get(name)
            for card in stored_cards(find_files(found[name])):
                if card.name not in cards:
                    cards.add(card)
    assert found.keys() == names, "the plan was made from these checkpoints"
    return found


def _load_nested(graph: AugmenterGraph, checkpoint: str, folder: Path) -> None:
    """Fill the attachments that come, trained, from the checkpoint of a nested composition."""
    own = {
        f"{planned.checkpoint_key}.{parameter}": tensor
        for planned in graph.plan.attachments
        if planned.checkpoint == checkpoint
        for parameter, tensor in graph.edges.attachments[planned.key].state_dict().items()
    }
    copy_exactly(own, read_tensors(folder, read_description(folder)), where=str(folder))


def _num_shards(sharding: Sharding) -> int:
    if sharding == "none":
        return 1
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            "sharding: got 'fsdp', but this process is not one of several; start it with torchrun or Ray Train, call "
            "torch.distributed.init_process_group() first, or leave sharding at 'none'"
        )
    return dist.get_world_size()


def _load_backends(
    runs: list[PlannedRun], dtype: torch.dtype | None, onnx: OnnxSettings | None, num_shards: int
) -> dict[str, Backend]:
    """Load each model once, as deep as its deepest run."""
    deepest: dict[tuple[str, str], PlannedRun] = {}
    for run in sorted(runs, key=lambda each: each.num_blocks):
        deepest[run.card.name, run.runtime] = run
    loaded = {model: _load_backend(run, dtype, onnx, num_shards) for model, run in deepest.items()}
    return {run.name: loaded[run.card.name, run.runtime] for run in runs}


def _load_backend(run: PlannedRun, dtype: torch.dtype | None, onnx: OnnxSettings | None, num_shards: int) -> Backend:
    named: dict[str, Any] = {"name": run.card.name, "context_length": run.card.context_length}
    if run.runtime == "torch":
        return TorchBackend(load_body(run.card, run.num_blocks, dtype=dtype, num_shards=num_shards), **named)
    if run.runtime == "remote":
        from calm_graph.augmenters.remote_backend import RemoteBackend

        return RemoteBackend(run.card, **named)
    from calm_graph.augmenters.onnx_backend import OnnxBackend
    from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings

    return OnnxBackend(OnnxSession(run.card, onnx or OnnxSettings(num_threads=torch.get_num_threads())), **named)


def text_readers(plan: Plan, tokenizer: Any) -> dict[str, Callable[[], Reader]]:
    """Choose how each augmenter reads the anchor's text; those with inputs of their own have no reader.

    Args:
        plan: What runs.
        tokenizer: The anchor's.

    Returns:
        Run name -> maker of its reader.
    """
    readers: dict[str, Callable[[], Reader]] = {}
    anchor_bytes: TokenBytes | None = None
    for run in plan.runs:
        if run.is_anchor or run.card.modality != "text":
            continue
        streams = run.reading == "stream"
        if run.prompt_template is None and _same_tokenizer(run.card, plan.anchor.card):
            readers[run.name] = partial(SharedReader, streams=streams, vocab_size=run.card.vocab_size)
            continue
        anchor_bytes = anchor_bytes or TokenBytes(tokenizer)
        readers[run.name] = partial(
            TextReader,
            anchor_bytes=anchor_bytes,
            tokenizer=TextTokenizer.of(load_tokenizer(run.card)),
            streams=streams,
            template=run.prompt_template,
            open_words=run.open_words,
        )
    return readers


def _same_tokenizer(card: ModelCard, anchor: ModelCard) -> bool:
    """Whether token ids are shared. The files decide: a name on a card is for people."""
    ours, theirs = (tokenizer_fingerprint(find_files(each)) for each in (card, anchor))
    return ours is not None and ours == theirs
