"""From a plan to a model: load what is frozen, and put the attachments between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from calm_graph.declare.composition import Composition
from calm_graph.declare.description import read_description
from calm_graph.declare.files import stored_cards
from calm_graph.declare.settings import Sharding
from calm_graph.errors import InputError
from calm_graph.model.augmenter_graph import AugmenterGraph
from calm_graph.model.checkpoint import copy_exactly, read_tensors
from calm_graph.model.composed import ComposedModel
from calm_graph.model.config import CalmGraphConfig
from calm_graph.model.placement import devices
from calm_graph.model.runtimes import load_backends, text_readers
from calm_graph.plan.graph import make_plan
from calm_graph.plan.parts import Plan
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.weights import find_files, load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_session import OnnxSettings


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
    backends = load_backends(augmenters, dtype, onnx, num_shards) if load_augmenters else {}
    # Loading draws random numbers, too: seeded after it, attachments are the same with and without augmenters.
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        graph = AugmenterGraph(plan, backends=backends, readers=text_readers(plan, tokenizer))
    graph.edges.attachments.to(attachment_dtype)
    for name, card in checkpoints.items():
        _load_nested(graph, name, find_files(card))
    return graph


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
