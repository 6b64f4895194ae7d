"""A training run's budget as aligned text."""

from __future__ import annotations

from calm_graph.plan.budget import Budget
from calm_graph.plan.gpus import Gpu
from calm_graph.plan.parts import Plan
from calm_graph.plan.tables import aligned, short, size
from calm_graph.plan.workload import Workload


def budget_table(plan: Plan, workload: Workload, budget: Budget, *, gpu: Gpu, num_gpus: int, utilisation: float) -> str:
    """Return what a run needs, as text: memory of one device, work of one sample, and the whole run.

    Args:
        plan: What runs.
        workload: Shape of a step and size of the run.
        budget: Its budget.
        gpu: The device.
        num_gpus: How many of them.
        utilisation: Model FLOPs that are reached over the device's peak.
    """
    title = (
        f"{plan.composition.name} on {num_gpus} x {gpu.title} in {workload.precision}: "
        f"{short(workload.num_tokens)} tokens in {budget.num_steps:,} steps of "
        f"{workload.batch_size * num_gpus:,} samples of {workload.sequence_length:,} tokens"
    )
    notes = [f"note: {sentence}" for sentence in budget.missing]
    parts = [title, "", *_memory(budget, gpu), "", *_sample(budget), "", *_run(workload, budget, num_gpus, utilisation)]
    return "\n".join([*parts, *([""] if notes else []), *notes])


def _memory(budget: Budget, gpu: Gpu) -> list[str]:
    memory = budget.memory
    rows = [
        ("frozen weights", memory.frozen_weights),
        ("shards fetched from other devices", memory.gathered_weights),
        ("composition parameters", memory.trained_weights),
        ("AdamW moments", memory.moments),
        ("gradients", memory.gradients),
        ("AdamW's update", memory.update),
        ("activations", memory.activations),
        ("cached contexts", memory.contexts),
        ("logits", memory.logits),
        ("peak", memory.peak),
    ]
    lines = aligned(("memory of a device", "bytes"), [(name, size(value)) for name, value in rows if value])
    if gpu.memory_bytes is None:
        return [*lines, "  how much memory the device has is not in the table"]
    verdict = "fits" if budget.fits else "DOES NOT FIT"
    most = budget.max_batch_size
    advice = f"at most {most} samples at once" if most else "not even one sample does; use sharding or a larger device"
    return [*lines, f"  {verdict} into {size(gpu.memory_bytes)}: {advice}"]


def _sample(budget: Budget) -> list[str]:
    flops = budget.sample_flops
    rows = [(f"augmenter {name}", value) for name, value in flops.augmenters.items()]
    rows.append(("anchor", flops.anchor))
    if flops.teacher:
        rows.append(("the anchor alone, as a teacher", flops.teacher))
    rows += [("attachments", flops.attachments), ("backward", flops.backward)]
    rows.append(("all", flops.total))
    return aligned(("work for a sample", "FLOPs"), [(name, short(value) if value else "-") for name, value in rows])


def _run(workload: Workload, budget: Budget, num_gpus: int, utilisation: float) -> list[str]:
    rows = [
        ("FLOPs", f"{budget.flops:.3g}"),
        ("a step", f"{budget.step_s:.3g} s, bound by {budget.bound}"),
        ("time", f"{budget.hours:,.3g} hours at {utilisation:.0%} of the peak"),
        ("device hours", f"{budget.hours * num_gpus:,.3g}"),
        ("sent by a device in a step", size(budget.sent_bytes_per_step)),
        ("sent in all", size(round(budget.sent_bytes))),
    ]
    if (states := budget.states) is not None:
        rows += [
            ("cached states on disk", f"{size(states.num_bytes)} of {', '.join(states.runs) or 'no augmenter'}"),
            ("precomputing them", f"{states.flops:.3g} FLOPs, {states.hours:,.3g} hours"),
        ]
    return aligned(("the run", ""), rows)
