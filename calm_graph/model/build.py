"""From a plan to a model: load what is frozen, choose how each augmenter reads, put the attachments in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.declare.composition import Composition
from calm_graph.declare.files import stored_cards
from calm_graph.declare.settings import Sharding
from calm_graph.errors import CheckpointError, InputError
from calm_graph.model.alignment import Reader, SharedReader, TextReader
from calm_graph.model.augmenter_graph import AugmenterGraph
from calm_graph.model.checkpoint import copy_exactly, read_description, read_tensors
from calm_graph.model.composed import ComposedModel
from calm_graph.model.config import CalmGraphConfig
from calm_graph.model.placement import devices
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.plan.graph import make_plan
from calm_graph.plan.parts import Plan, PlannedRun
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.fingerprint import fingerprint, tokenizer_fingerprint
from registry.weights import find_files, load_body, load_causal_lm, load_tokenizer


def build_model(
    composition: Composition | Plan,
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | None = None,
    attachment_dtype: torch.dtype = torch.float32,
    seed: int | None = None,
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
        InputError: A tokenizer cannot be used, or a runtime, sharding or a placement is not possible here.
    """
    plan = composition if isinstance(composition, Plan) else make_plan(composition, registry=registry)
    foreign = [run.name for run in plan.runs if run.runtime != "torch"]
    if foreign:
        raise InputError(f"composition: {foreign} ask for runtime 'onnx', which this version cannot run; use 'torch'")
    num_shards = _num_shards(sharding)
    if num_shards > 1 and placement:
        raise InputError("placement: got one together with sharding='fsdp', which spreads every model; leave one out")
    where = devices(plan, placement) if placement else {}  # before anything is loaded
    anchor = load_causal_lm(plan.anchor.card, dtype=dtype, num_shards=num_shards)
    tokenizer = load_tokenizer(plan.anchor.card)
    runs = [run for run in plan.runs if not run.is_anchor]
    backends = _load_backends(runs, dtype, num_shards)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        graph = AugmenterGraph(plan, backends=backends, readers=_readers(runs, plan.anchor.card, tokenizer))
    graph.attachments.to(attachment_dtype)
    if where:
        anchor.to(where[plan.anchor.name])  # type: ignore[arg-type]
        graph.place(where)
    checkpoints = _nested_checkpoints(plan, default_registry if registry is None else registry)
    for name, card in checkpoints.items():
        _load_nested(graph, name, find_files(card))
    config = CalmGraphConfig(
        # Where the anchor lies on this machine is nobody's business elsewhere.
        anchor_config={key: value for key, value in anchor.config.to_dict().items() if key != "_name_or_path"},
        architectures=[ComposedModel.__name__],
        dtype=anchor.dtype,
    )
    return ComposedModel(config, anchor=anchor, graph=graph, tokenizer=tokenizer, checkpoints=checkpoints.values())


def build_from_description(
    description: Mapping[str, Any],
    *,
    registry: Registry | None = None,
    dtype: torch.dtype | None = None,
    attachment_dtype: torch.dtype = torch.float32,
    where: str,
) -> ComposedModel:
    """Build the model that a checkpoint describes, on the frozen models it was made for.

    Args:
        description: Content of composition.json.
        registry: As in `build_model`; cards it does not have are taken from the description.
        dtype: As in `build_model`.
        attachment_dtype: As in `build_model`.
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
    problems = []
    for name, card in stored.items():
        if name not in cards:
            cards.add(card.model_copy(update={"fingerprint": None}))
        if (found := fingerprint(find_files(cards.get(name)))) != card.fingerprint:
            problems.append(f"{name!r} was {card.fingerprint} and is {found} in {find_files(cards.get(name))}")
    if problems:
        raise CheckpointError(
            f"{where}: trained with other frozen models: {'; '.join(problems)}. "
            "Put the same files back, or register them under that name"
        )
    composition = Composition.parse(description["composition"], where=where)
    return build_model(composition, registry=cards, dtype=dtype, attachment_dtype=attachment_dtype)


def _nested_checkpoints(plan: Plan, registry: Registry) -> dict[str, ModelCard]:
    """Cards of the trained compositions inside a plan; an inner one may be known to the one around it only."""
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
        for parameter, tensor in graph.attachments[planned.key].state_dict().items()
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


def _load_backends(runs: list[PlannedRun], dtype: torch.dtype | None, num_shards: int) -> dict[str, TorchBackend]:
    """Load each model once, as deep as its deepest run."""
    deepest: dict[ModelCard, int] = {}
    for run in runs:
        deepest[run.card] = max(run.num_blocks, deepest.get(run.card, 0))
    loaded = {
        card: TorchBackend(
            load_body(card, num_blocks, dtype=dtype, num_shards=num_shards),
            name=card.name,
            context_length=card.context_length,
        )
        for card, num_blocks in deepest.items()
    }
    return {run.name: loaded[run.card] for run in runs}


def _readers(runs: list[PlannedRun], anchor: ModelCard, anchor_tokenizer: Any) -> dict[str, Callable[[], Reader]]:
    readers: dict[str, Callable[[], Reader]] = {}
    anchor_bytes: TokenBytes | None = None
    for run in runs:
        if run.card.modality != "text":
            continue
        streams = run.reading == "stream"
        if run.prompt_template is None and _same_tokenizer(run.card, anchor):
            readers[run.name] = partial(SharedReader, streams=streams, vocab_size=run.card.vocab_size)
            continue
        anchor_bytes = anchor_bytes or TokenBytes(anchor_tokenizer)
        readers[run.name] = partial(
            TextReader,
            anchor_bytes=anchor_bytes,
            tokenizer=TextTokenizer.of(load_tokenizer(run.card)),
            streams=streams,
            template=run.prompt_template,
        )
    return readers


def _same_tokenizer(card: ModelCard, anchor: ModelCard) -> bool:
    """Whether token ids are shared. The files decide: a name on a card is for people."""
    ours, theirs = (tokenizer_fingerprint(find_files(each)) for each in (card, anchor))
    return ours is not None and ours == theirs
