"""A sweep to look at: a table of its trials, and a picture of score against parameters added."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calm_graph.plan.tables import print_rows, short
from calm_graph.train.sweep_results import SweepResult, Trial

_HEADER = ("trial", "bits/byte", "parameters", "steps", "seconds", "")


def print_table(result: SweepResult) -> None:
    """Print the trials, best first: with colours on a terminal, as plain text elsewhere.

    Args:
        result: Of a sweep.
    """
    rows = [_row(trial, result) for trial in result.trials]
    styles = dict.fromkeys(result.front, "green")
    styles |= {trial.name: "red" for trial in result.trials if trial.state == "failed"}
    print_rows(_HEADER, rows, styles=[styles.get(trial.name) for trial in result.trials])


def plot(result: SweepResult, path: Path) -> None:
    """Draw the trials' scores against the parameters they add; the Pareto front is a line with names.

    Args:
        result: Of a sweep.
        path: A PNG, replaced as a whole.
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for state, marker, colour in (("finished", "o", "#2f6db5"), ("stopped", "x", "#8a8f98")):
        points = [(each.num_parameters, each.score) for each in result.trials if each.state == state and each.score]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=state)
    by_name = {trial.name: trial for trial in result.trials}
    front = [by_name[name] for name in result.front]
    places = [(trial.num_parameters or 0, trial.score or 0.0) for trial in front]
    if places:
        axes.step(*zip(*places, strict=True), where="post", color="#d9772b", linewidth=1.2, label="Pareto front")
    for trial, place in zip(front, places, strict=True):
        axes.annotate(trial.name, place, xytext=(5, 5), textcoords="offset points", fontsize=7)
    before = next((trial.first_score for trial in result.trials if trial.first_score), None)
    if before is not None:
        axes.axhline(before, color="#8a8f98", linestyle=":", linewidth=1, label="the anchor alone")
    axes.set_xlabel("parameters added")
    axes.set_ylabel("held-out bits per byte")
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.margins(x=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    scratch = path.with_name(f".{path.name}.tmp")
    figure.savefig(scratch, format="png")
    os.replace(scratch, path)


def _row(trial: Trial, result: SweepResult) -> tuple[str, ...]:
    notes = {"finished": "", "stopped": "stopped early", "failed": f"failed: {trial.error}"}[trial.state]
    if trial.name in result.front:
        notes = "Pareto front"
    if result.best is not None and trial.name == result.best.name:
        notes = "best"
    return (
        trial.name,
        "-" if trial.score is None else f"{trial.score:.4f}",
        "-" if trial.num_parameters is None else short(trial.num_parameters),
        str(trial.steps),
        f"{trial.seconds:.0f}",
        notes.partition("\n")[0],
    )
