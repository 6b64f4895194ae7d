"""Bytes that one training step needs on a device: weights, what training adds to them, and what backward waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calm_graph.plan.estimate import BYTES_FP32, estimate, model_size
from calm_graph.plan.parts import Edge, Plan, PlannedRun
from calm_graph.plan.step_flops import cached_runs, gradient_starts, num_backward_blocks, num_tokens
from calm_graph.plan.workload import Workload
from registry.layouts import LAYOUTS, Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """Bytes on one device.

    Args:
        frozen_weights: Of the models that run there, as deep as they run.
        gathered_weights: Of the other devices' shards, while a block that needs them runs.
        trained_weights: Of the attachments, and their copies in the precision of the arithmetic.
        moments: AdamW's two.
        gradients: Of the attachments.
        update: What the optimiser needs while it updates.
        activations: What the backward pass needs of the forward pass, besides the next two.
        contexts: Keys and values of the attachments.
        logits: Log-probabilities of the supervised positions, and their gradients, which are the same size.
    """

    frozen_weights: int
    gathered_weights: int
    trained_weights: int
    moments: int
    gradients: int
    update: int
    activations: int
    contexts: int
    logits: int

    @property
    def lasting(self) -> int:
        """What is there from one step to the next."""
        return self.frozen_weights + self.gathered_weights + self.trained_weights + self.moments

    @property
    def passing(self) -> int:
        """What grows with the batch; most when the backward pass begins."""
        return self.activations + self.contexts + self.logits

    @property
    def peak(self) -> int:
        """The most at once: gradients come as activations go, so either the one or the other end of the pass."""
        return self.lasting + max(self.passing, self.gradients + self.update)


def step_memory(plan: Plan, workload: Workload, *, num_devices: int = 1, fused_update: bool = True) -> StepMemory:
    """Work out the bytes of a step.

    A weight that is not trained keeps nothing of its input for the backward pass. What a block keeps was read off
    autograd's saved tensors: what each norm reads (in fp32), queries, keys, values and output of the attention, and
    three tensors of the gated MLP's inner width. Nothing is recomputed, no sample is padded, and what the device's
    driver and allocator take (about a gigabyte on a GPU) comes on top.

    Args:
        plan: What runs.
        workload: The shape of a step.
        num_devices: Over which `fsdp` spreads the frozen weights.
        fused_update: Whether the optimiser updates parameter by parameter; torch does on CPUs, on GPUs it updates all
            together, with one more tensor the size of each.
    """
    starts, cached = gradient_starts(plan), cached_runs(plan, workload)
    cost = estimate(plan)
    trained = BYTES_FP32 * cost.num_trainable_parameters
    loaded = _frozen_parameters(plan, cached)
    frozen, gathered = workload.value_bytes * sum(loaded.values()), 0
    if workload.sharding == "fsdp" and num_devices > 1:
        # The block that runs and the next one, which is fetched meanwhile.
        gathered = 2 * workload.value_bytes * max(model_size(run.card).block for run in plan.runs)
        frozen = -(-frozen // num_devices)
    # Attachments of a nested checkpoint are as large as trained ones, but nothing is kept for their sake.
    fixed = BYTES_FP32 * (cost.num_attachment_parameters - cost.num_trainable_parameters)
    activations = sum(_run_kept(run, plan, workload, starts) for run in plan.runs)
    activations += sum(_edge_kept(edge, plan, workload) for edge in plan.edges)
    copies = cost.num_trainable_parameters * workload.value_bytes if workload.precision != "fp32" else 0
    head = model_size(plan.anchor.card).head // plan.anchor.hidden_size
    # Kept rows have their teacher's as well, copies of both, and their difference (counted by measuring).
    num_logits = 0 if workload.told_layer is not None else 3 + 4 * workload.keep_share
    return StepMemory(
        frozen_weights=frozen + fixed,
        gathered_weights=gathered,
        trained_weights=trained + copies,
        moments=2 * trained,
        gradients=trained,
        update=0 if fused_update else trained,
        activations=workload.batch_size * activations,
        contexts=workload.batch_size * sum(_edge_contexts(edge, plan, workload) for edge in plan.edges),
        logits=round(num_logits * BYTES_FP32 * workload.batch_size * workload.num_supervised_tokens * head),
    )


def _frozen_parameters(plan: Plan, cached: frozenset[str]) -> dict[tuple[str, bool], int]:
    """Parameters of each model that is loaded, once, as deep as its deepest run."""
    costs = estimate(plan).runs
    deepest: dict[tuple[str, bool], int] = {}
    for run in plan.runs:
        if run.name not in cached and run.runtime != "remote":
            loaded = (run.card.name, run.is_anchor)
            deepest[loaded] = max(costs[run.name].num_parameters, deepest.get(loaded, 0))
    return deepest


def _run_kept(run: PlannedRun, plan: Plan, workload: Workload, starts: Mapping[str, int]) -> int:
    """Bytes that the backward pass needs of the blocks of a run, for one sample."""
    if run.name not in starts:
        return 0
    card, width = run.card, run.hidden_size
    layout = LAYOUTS.get(card.architecture or "", Layout())
    num_heads = card.num_heads or 1
    head_dim = card.head_dim or width // num_heads
    queries_and_keys = (num_heads + (card.num_key_value_heads or num_heads)) * head_dim
    # Without a gate the MLP keeps one tensor or, where its activation function is written out (GPT-2), four.
    mlp = (3 if model_size(card).is_gated else 4) * (card.intermediate_size or 4 * width)
    block = BYTES_FP32 * (layout.num_norms * width + layout.norms_queries * queries_and_keys)
    block += workload.value_bytes * (2 * queries_and_keys + mlp)
    # What the last norm reads, or where states are compared with told ones, the tensors of that (counted by measuring).
    num_last = 1 if workload.told_layer is None else 14
    ending = BYTES_FP32 * width * run.is_anchor * num_last
    num_kept = num_backward_blocks(run, starts, workload)
    kept = num_kept * block
    if workload.activation_checkpointing and num_kept:
        kept = num_kept * workload.value_bytes * width + block  # what goes into each, and one that is run again
    return num_tokens(run, workload) * (kept + ending)


def _edge_kept(edge: Edge, plan: Plan, workload: Workload) -> int:
    """Bytes that the backward pass needs of an edge's attachments, without keys and values, for one sample."""
    value, read, written = workload.value_bytes, *_tokens(edge, plan, workload)
    kept = 0
    for found in edge.attachments if read else ():
        inner, c, d = found.num_heads * found.head_dim, found.source_width, found.target_width
        normed = BYTES_FP32 * (found.norms == "rms")  # what a norm reads is kept beside what comes of it
        kept += read * (normed * c + value * (c + d))  # the state, what `project` reads, the context
        kept += written * (normed * d + value * (d + 3 * inner))  # the stream, what `query` reads, and the attention
        kept += written * value * d * (found.gate == "tanh")
        kept += (
            read * written * value * (found.num_heads if found.positions == "distance" else 1)
        )  # the mask, as numbers
    return kept


def _edge_contexts(edge: Edge, plan: Plan, workload: Workload) -> int:
    """Bytes of the keys and values of an edge's attachments, for one sample."""
    read, _ = _tokens(edge, plan, workload)
    return sum(2 * found.num_heads * found.head_dim for found in edge.attachments) * read * workload.value_bytes


def _tokens(edge: Edge, plan: Plan, workload: Workload) -> tuple[int, int]:
    return num_tokens(plan.run(edge.source), workload), num_tokens(plan.run(edge.target), workload)
