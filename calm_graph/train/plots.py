"""A picture of a run: loss, evaluations and learning rate over the steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2f6db5", "#d9772b", "#8a8f98"


def plot_loss(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the records of a metrics file.

    Args:
        records: Of training and of evaluation, in order.
        path: A PNG, replaced as a whole.
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
    upper.plot(steps, _smooth(losses), color=_BLUE, linewidth=1.6, label="training, smoothed")
    if evaluated:
        points = ([record["step"] for record in evaluated], [record["eval_loss"] for record in evaluated])
        upper.plot(*points, color=_ORANGE, marker="o", markersize=3.5, linewidth=1.2, label="evaluation")
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
    upper.set_ylabel("loss (nats per token)")
    upper.legend(frameon=False, fontsize=8)
    lower.plot(steps, [record["learning_rate"] for record in trained], color=_GREY, linewidth=1.2)
    lower.set_ylabel("learning rate", fontsize=8)
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
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
