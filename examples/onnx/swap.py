"""Export the augmenters of a trained composition and load it again with the exports in their places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calm_graph.augmenters.onnx_export import export_augmenter
from calm_graph.augmenters.onnx_quantise import Precision
from calm_graph.declare.files import load_composition
from calm_graph.plan.graph import make_plan


def export_all(checkpoint: Path, out: Path, precision: Precision, show: Callable[[str], None] = print) -> list[Path]:
    """Export what a composition reads, each model up to the last layer that is read of it.

    Args:
        checkpoint: Folder of a trained composition.
        out: Gets a folder for each augmenter and precision; those that are there are kept.
        precision: Of the weights.
        show: Gets a line about each stage.

    Returns:
        The exported folders.
    """
    folders = []
    for run in make_plan(load_composition(checkpoint)).runs:
        if run.is_anchor:
            continue
        folder = out / f"{run.card.name}-{precision}"
        traced = out / f"{run.card.name}-fp32"
        if not folder.exists():
            export_augmenter(
                run.card.name,
                layers=run.taps,
                out=folder,
                reading=run.reading,
                precision=precision,
                traced=traced if traced.exists() else None,
                show=show,
            )
        folders.append(folder)
    return folders
