"""FLOPs of one training step: the frozen models forward, and backward only as far as a trained attachment needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calm_graph.plan.estimate import model_size
from calm_graph.plan.parts import Edge, Plan, PlannedRun
from calm_graph.plan.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """FLOPs for one sample of the anchor's sequence length.

    Args:
        augmenters: Run -> its forward pass; 0 where its states are cached.
        anchor: Forward, logits among it.
        teacher: The anchor alone, over told or kept texts.
        attachments: Forward.
        backward: Of everything.
    """

    augmenters: Mapping[str, int]
    anchor: int
    teacher: int
    attachments: int
    backward: int

    @property
    def total(self) -> int:
        """FLOPs of a training step for each sample."""
        return sum(self.augmenters.values()) + self.anchor + self.teacher + self.attachments + self.backward


def gradient_starts(plan: Plan) -> dict[str, int]:
    """Return, by run, the layer after whose output its states depend on trained weights; other runs are absent."""
    starts: dict[str, int] = {}
    for run in plan.runs:
        layers = [
            found.anchor_layer
            for edge in plan.into(run.name)
            for found in edge.attachments
            if found.trainable or found.augmenter_layer >= starts.get(edge.source, found.augmenter_layer + 1)
        ]
        if layers:
            starts[run.name] = min(layers)
    return starts


def cached_runs(plan: Plan, workload: Workload) -> frozenset[str]:
    """Return the augmenters whose states are read from a cache: those that nothing trained writes into."""
    if workload.states == "none":
        return frozenset()
    starts = gradient_starts(plan)
    return frozenset(run.name for run in plan.runs if not run.is_anchor and run.name not in starts)


def num_tokens(run: PlannedRun, workload: Workload) -> int:
    """Return how many tokens of a sample a run reads."""
    anchor_tokens = workload.num_prompt_tokens if run.reading == "prompt" else workload.sequence_length
    return anchor_tokens if run.is_anchor else round(anchor_tokens * workload.token_ratios.get(run.name, 1))


def step_flops(plan: Plan, workload: Workload) -> StepFlops:
    """Work out the FLOPs of one sample.

    One multiply-add is 2 FLOPs; norms, activation functions and look-ups are left out, as in `estimate`. Weights that
    are not trained need only the gradient of their input: their backward pass costs as much as the forward pass.
    Attention costs 2.5 times as much, because flash attention computes its scores again (arXiv 2205.14135). Masked
    positions are counted, because kernels that take a mask do not skip them.

    Args:
        plan: What runs.
        workload: The shape of a sample.
    """
    starts, cached = gradient_starts(plan), cached_runs(plan, workload)
    augmenters: dict[str, int] = {}
    backward = anchor = teacher = 0
    for run in plan.runs:
        tokens = num_tokens(run, workload)
        linear, attention = _block(run, tokens)
        forward = num_blocks(run, workload) * (linear + attention)
        if run.is_anchor:
            told = workload.told_layer is not None
            logits = 0 if told else 2 * model_size(run.card).head * workload.num_supervised_tokens
            stored = (plan.first_attached_layer + 1) * (linear + attention) if workload.states == "cached" else 0
            anchor = forward - stored + logits
            # What was told has no states that are stored.
            teacher = forward if told else round(workload.keep_share * anchor)
            backward += logits if starts else 0
        else:
            augmenters[run.name] = 0 if run.name in cached else forward
        again = linear + attention if workload.activation_checkpointing else 0
        backward += num_backward_blocks(run, starts, workload) * (linear + attention * 5 // 2 + again)
    attachments = 0
    for edge in plan.edges:
        forward, back = _edge(edge, plan, workload, starts)
        attachments += forward
        backward += back
    return StepFlops(augmenters=augmenters, anchor=anchor, teacher=teacher, attachments=attachments, backward=backward)


def num_blocks(run: PlannedRun, workload: Workload) -> int:
    """Return how many blocks of a run a training step goes through."""
    if run.is_anchor and workload.told_layer is not None:
        return workload.told_layer + 1
    return run.num_blocks


def num_backward_blocks(run: PlannedRun, starts: Mapping[str, int], workload: Workload) -> int:
    """Return how many blocks of a run the backward pass goes through: those above the lowest attachment into it."""
    return num_blocks(run, workload) - 1 - starts[run.name] if run.name in starts else 0


def _block(run: PlannedRun, tokens: int) -> tuple[int, int]:
    """FLOPs of a block's matrices and of its attention, for one sample."""
    num_heads = run.card.num_heads or 1
    head_dim = run.card.head_dim or run.hidden_size // num_heads
    return 2 * model_size(run.card).active_block * tokens, 4 * tokens * tokens * num_heads * head_dim


def _edge(edge: Edge, plan: Plan, workload: Workload, starts: Mapping[str, int]) -> tuple[int, int]:
    """FLOPs of an edge's attachments forward and backward, for one sample."""
    read, written = num_tokens(plan.run(edge.source), workload), num_tokens(plan.run(edge.target), workload)
    forward = backward = 0
    for found in edge.attachments if read else ():
        inner, d = found.num_heads * found.head_dim, found.target_width
        linear = 2 * read * (found.source_width * d + 2 * d * inner) + 2 * written * 2 * d * inner
        attention = 4 * read * written * inner
        forward += linear + attention
        if found.trainable:
            backward += 2 * linear + attention * 5 // 2
        elif edge.source in starts or found.anchor_layer > starts.get(edge.target, found.anchor_layer):
            backward += linear + attention * 5 // 2
    return forward, backward
