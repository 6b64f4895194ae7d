"""What a whole training run needs on given devices: does it fit, how long it takes, what is stored and sent."""

from __future__ import annotations

from dataclasses import dataclass

from calm_graph.declare.base import near
from calm_graph.errors import InputError
from calm_graph.plan.estimate import model_size
from calm_graph.plan.gpus import Gpu
from calm_graph.plan.parts import Plan
from calm_graph.plan.step_flops import (
    StepFlops,
    cached_runs,
    gradient_starts,
    num_backward_blocks,
    num_tokens,
    step_flops,
)
from calm_graph.plan.step_memory import StepMemory, step_memory
from calm_graph.plan.workload import Workload

UTILISATION = 0.4
"""Model FLOPs over peak FLOPs; Llama 3 reached 0.38 to 0.43 on 8 to 16 thousand H100 (arXiv 2407.21783, table 4)."""

# What cost formulas take where a card does not say.
_ASSUMED = {
    "num_heads": "one head",
    "num_key_value_heads": "as many as heads",
    "head_dim": "width / heads",
    "intermediate_size": "4 x width",
    "num_parameters": "a gated block's, by its shape",
    "vocab_size": "no logits and no embedding",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedStates:
    """States of frozen models, computed once and stored.

    Args:
        runs: Whose states.
        num_bytes: On disk, for the whole data set.
        flops: To compute them.
        hours: To compute them on the same devices.
    """

    runs: tuple[str, ...]
    num_bytes: int
    flops: float
    hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a run needs.

    Args:
        memory: On one device.
        fits: Whether that is less than the device has; None where that is not known.
        max_batch_size: The most samples at once that fit; None where that is not known.
        sample_flops: For each sample.
        num_steps: Optimiser steps.
        flops: Of the whole run.
        step_s: Of one step.
        bound: What sets that: arithmetic, or memory, when reading the weights takes longer.
        hours: Of the whole run.
        sent_bytes_per_step: What each device sends in one step, gradients and shards.
        sent_bytes: What all devices send in the whole run.
        states: With `states="cached"`: what was stored beforehand.
        missing: What the formulas had to assume, in sentences.
    """

    memory: StepMemory
    fits: bool | None
    max_batch_size: int | None
    sample_flops: StepFlops
    num_steps: int
    flops: float
    step_s: float
    bound: str
    hours: float
    sent_bytes_per_step: int
    sent_bytes: float
    states: CachedStates | None
    missing: tuple[str, ...]


def make_budget(
    plan: Plan, workload: Workload, *, gpu: Gpu, num_gpus: int = 1, utilisation: float = UTILISATION
) -> Budget:
    """Work out what a run needs.

    Time is arithmetic at the given utilisation, or what it takes to read the weights, whichever is longer; sending is
    taken to be hidden behind them.

    Args:
        plan: What runs.
        workload: Shape of a step and size of the run.
        gpu: The device.
        num_gpus: How many of them, each with its own batch.
        utilisation: Model FLOPs that are reached over the device's peak, in 0..1.

    Returns:
        Memory, FLOPs, time, and bytes stored and sent.

    Raises:
        InputError: The workload does not fit the composition or the device.
    """
    _check(plan, workload, gpu, num_gpus, utilisation)
    on_cpu = gpu.memory_bytes is None
    memory = step_memory(plan, workload, num_devices=num_gpus, fused_update=on_cpu)
    sample = step_flops(plan, workload)
    speed = gpu.peak_flops[workload.precision] * utilisation
    arithmetic_s = workload.batch_size * sample.total / speed
    # The weights are read once forward, and those that the gradient passes once more.
    num_shards = num_gpus if workload.sharding == "fsdp" else 1
    read_bytes = (1 + _backward_share(plan, workload)) * memory.frozen_weights * num_shards
    reading_s = read_bytes / gpu.bandwidth_bytes
    step_s = max(arithmetic_s, reading_s)
    num_samples = workload.num_tokens / workload.sequence_length
    num_steps = max(1, round(num_samples / (workload.batch_size * num_gpus)))
    sent = _sent_bytes(plan, workload, memory, num_gpus)
    return Budget(
        memory=memory,
        fits=None if gpu.memory_bytes is None else memory.peak <= gpu.memory_bytes,
        max_batch_size=_max_batch_size(memory, workload, gpu),
        sample_flops=sample,
        num_steps=num_steps,
        flops=float(sample.total) * num_samples,
        step_s=step_s,
        bound="arithmetic" if arithmetic_s >= reading_s else "memory",
        hours=num_steps * step_s / 3600,
        sent_bytes_per_step=sent,
        sent_bytes=float(sent) * num_steps * num_gpus,
        states=_cached_states(plan, workload, speed * num_gpus) if workload.states != "none" else None,
        missing=_missing(plan),
    )


def stored_bytes_per_sample(plan: Plan, workload: Workload) -> int:
    """Return the bytes of the states that are stored of one sample: of every tap of every run that is cached."""
    runs = [plan.run(name) for name in sorted(cached_runs(plan, workload))]
    values = sum(len(run.taps) * run.hidden_size * num_tokens(run, workload) for run in runs)
    if workload.states == "cached":
        values += plan.anchor.hidden_size * workload.sequence_length
    return values * workload.value_bytes


def _cached_states(plan: Plan, workload: Workload, speed: float) -> CachedStates:
    num_samples = workload.num_tokens / workload.epochs / workload.sequence_length
    runs = cached_runs(plan, workload) | ({plan.anchor.name} if workload.states == "cached" else set())
    running, reading = step_flops(plan, workload.model_copy(update={"states": "none"})), step_flops(plan, workload)
    saved = sum(running.augmenters.values()) - sum(reading.augmenters.values()) + running.anchor - reading.anchor
    flops = num_samples * saved
    return CachedStates(
        runs=tuple(run.name for run in plan.runs if run.name in runs),
        num_bytes=round(num_samples * stored_bytes_per_sample(plan, workload)),
        flops=flops,
        hours=flops / speed / 3600,
    )


def _backward_share(plan: Plan, workload: Workload) -> float:
    """Return the share of the frozen weights that the backward pass reads again."""
    starts = gradient_starts(plan)
    blocks = {run.name: model_size(run.card).block for run in plan.runs}
    again = sum(num_backward_blocks(run, starts, workload) * blocks[run.name] for run in plan.runs)
    return again / max(1, sum(run.num_blocks * blocks[run.name] for run in plan.runs))


def _sent_bytes(plan: Plan, workload: Workload, memory: StepMemory, num_gpus: int) -> int:
    """Bytes that each device sends in one step: a ring's 2 (N-1)/N for sums, (N-1)/N for gathering shards."""
    others = (num_gpus - 1) / num_gpus
    sent = 2 * others * memory.gradients
    if workload.sharding == "fsdp":
        sent += others * memory.frozen_weights * num_gpus * (1 + _backward_share(plan, workload))
    return round(sent)


def _max_batch_size(memory: StepMemory, workload: Workload, gpu: Gpu) -> int | None:
    if gpu.memory_bytes is None:
        return None
    free = gpu.memory_bytes - memory.lasting
    if memory.gradients + memory.update > free:
        return 0
    return max(0, int(free * workload.batch_size // max(1, memory.passing)))


def _missing(plan: Plan) -> tuple[str, ...]:
    found = []
    for card in {run.card.name: run.card for run in plan.runs}.values():
        for fact in card.missing_facts():
            if fact in _ASSUMED:
                found.append(f"card {card.name!r} does not say {fact}; taken: {_ASSUMED[fact]}")
        if card.modality != "text":
            found.append(
                f"card {card.name!r} reads no text, so its states per sample are not known; taken: one for each token "
                "of the anchor's that it would read"
            )
    return tuple(found)


def _check(plan: Plan, workload: Workload, gpu: Gpu, num_gpus: int, utilisation: float) -> None:
    if workload.precision not in gpu.peak_flops:
        raise InputError(
            f"precision: got {workload.precision!r}, but {gpu.title} has no such arithmetic in the table; "
            f"use {' or '.join(gpu.peak_flops)}"
        )
    if num_gpus < 1:
        raise InputError(f"num_gpus: got {num_gpus}, but at least 1 is needed")
    if not 0 < utilisation <= 1:
        raise InputError(f"utilisation: got {utilisation}, but a share of the peak is needed: more than 0, at most 1")
    augmenters = [run.name for run in plan.runs if not run.is_anchor]
    for name, ratio in workload.token_ratios.items():
        if name not in augmenters:
            raise InputError(f"token_ratios: got {name!r}, but the augmenters are {augmenters}{near(name, augmenters)}")
        if ratio <= 0:
            raise InputError(f"token_ratios[{name!r}]: got {ratio}, but more than 0 is needed")
    layer = workload.told_layer
    if layer is not None and layer not in (allowed := plan.told_layers):
        raise InputError(
            f"told_layer: got {layer}, but allowed are {allowed[0]}..{allowed[-1]}: from the last attachment on"
        )
    if layer is not None and workload.sharding != "none":
        raise InputError(f"told_layer: got {layer}, but states are compared with sharding='none' only")
    if workload.keep_share and (layer is not None or workload.sharding != "none"):
        raise InputError("keep_share: rows are kept without told_layer and with sharding='none' only; leave one out")
    limit = plan.anchor.card.context_length
    if limit is not None and workload.sequence_length > limit:
        raise InputError(
            f"sequence_length: got {workload.sequence_length}, but anchor {plan.anchor.name!r} has a context of {limit}"
        )
