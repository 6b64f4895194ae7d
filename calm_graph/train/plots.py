"""Pictures of a run: loss, evaluations and learning rate over the steps; what each attachment writes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calm_graph.plan.parts import PlannedAttachment

_BLUE, _ORANGE, _GREY = "#2f6db5", "#d9772b", "#8a8f98"


def plot_loss(records: Sequence[dict[str, Any]], path: Path, *, measure: str = "nats per token") -> None:
    """Draw the records of a metrics file.

    Args:
        records: Of training and of evaluation, in order.
        path: A PNG, replaced as a whole.
        measure: What the training loss is, for its axis; that of evaluation is always in nats per token.
    """
    trained = [record for record in records if "loss" in record]
    evaluated = [record for record in records if "eval_loss" in record]
    # No pyplot: it keeps every figure of the process alive and picks a backend by the display.
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = [record["step"] for record in trained]
    losses = [record["loss"] for record in trained]
    upper.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=0.8)
    upper.plot(steps, _smooth(losses), color=_BLUE, linewidth=1.6, label=f"training ({measure}), smoothed")
    if evaluated:
        points = ([record["step"] for record in evaluated], [record["eval_loss"] for record in evaluated])
        label = "evaluation (nats per token)"
        upper.plot(*points, color=_ORANGE, marker="o", markersize=3.5, linewidth=1.2, label=label)
        best = min(evaluated, key=lambda record: float(record["eval_loss"]))
        upper.annotate(
            f"{best['eval_loss']:.3f} at step {best['step']}",
            (best["step"], best["eval_loss"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right" if steps and best["step"] > steps[-1] / 2 else "left",
            fontsize=8,
            color=_ORANGE,
        )
    upper.set_ylabel("loss")
    upper.legend(frameon=False, fontsize=8)
    lower.plot(steps, [record["learning_rate"] for record in trained], color=_GREY, linewidth=1.2)
    lower.set_ylabel("learning rate", fontsize=8)
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_writes(records: Sequence[dict[str, Any]], attachments: Sequence[PlannedAttachment], path: Path) -> None:
    """Draw how much each attachment writes into the stream over the steps: a panel for each model that is read.

    Args:
        records: Of a metrics file; without `written` among them nothing is drawn.
        attachments: Of the plan.
        path: A PNG, replaced as a whole.
    """
    written = [record for record in records if "written" in record]
    if not written:
        return
    steps = [record["step"] for record in written]
    pairs = list(dict.fromkeys((attachment.source, attachment.target) for attachment in attachments))
    figure = Figure(figsize=(8, 0.8 + 2.2 * len(pairs)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    largest = max((max(record["written"].values(), default=0.0) for record in written), default=0.0) or 1.0
    panels = figure.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (source, target) in zip(panels, pairs, strict=True):
        own = sorted(
            (each for each in attachments if (each.source, each.target) == (source, target)),
            key=lambda each: each.anchor_layer,
        )
        shares = [[record["written"].get(each.key, 0.0) for record in written] for each in own]
        image = axes.pcolormesh(
            [*_edges(steps)], range(len(own) + 1), shares, cmap="magma", vmin=0, vmax=largest, shading="flat"
        )
        axes.set_yticks([row + 0.5 for row in range(len(own))], [str(each.anchor_layer) for each in own], fontsize=7)
        axes.set_ylabel("after layer", fontsize=8)
        axes.set_title(f"{source} into {target}", fontsize=9, loc="left")
    panels[-1].set_xlabel("step")
    bar = figure.colorbar(image, ax=list(panels))
    bar.set_label("norm written / norm of the stream", fontsize=8)
    _save(figure, path)


def _edges(steps: Sequence[float]) -> Sequence[float]:
    """Where the columns around these steps begin and end."""
    between = [(left + right) / 2 for left, right in itertools.pairwise(steps)]
    width = steps[1] - steps[0] if len(steps) > 1 else 1
    return [steps[0] - width / 2, *between, steps[-1] + width / 2]


def _save(figure: Figure, path: Path) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    figure.savefig(scratch, format="png")
    os.replace(scratch, path)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential mean over about a fiftieth of the run, without its start-up bias."""
    keep = 1 - 1 / max(len(values) / 50, 1)
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
