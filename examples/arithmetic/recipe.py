"""How the demo's compositions are trained: briefly what a key is worth, then arithmetic with keys."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.progress import Show
from calm_graph.train import fit
from examples.arithmetic.data import Row, Split, departments, draw_key, draw_number, expression_row, numeric_row
from registry import Registry


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        share: Of all steps.
        num_operands: Numbers of operands, drawn from with equal chance.
    """

    share: float
    num_operands: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """What `trial` varies.

    Args:
        batch_size: Rows of a step.
        learning_rate: The peak; a warm-up comes before it and a cosine to nothing after it.
        weight_decay: On the attachments' matrices.
        numeric_share: Share of the rows without any key.
        number_share: Share of the operands of the other rows that are numbers.
        stages: In their order. Keys alone (`aba=`) come first, but briefly: they are learnt in fifty steps, and a trial
            without them was no worse.
    """

    batch_size: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    numeric_share: float = 0.15
    number_share: float = 0.3
    stages: tuple[Stage, ...] = (Stage(0.05, (1,)), Stage(0.95, (1, 2, 2, 3)))


RECIPE = Recipe()


def train_composition(
    composition: Composition,
    names: list[str],
    *,
    steps: int,
    seed: int,
    out: Path,
    show: Show = "auto",
    split: Split = "seen",
    recipe: Recipe = RECIPE,
    registry: Registry | None = None,
    num_workers: int = 0,
    selector: str | None = None,
) -> ComposedModel:
    """Train a composition on expressions over the keys of one split.

    Args:
        composition: One of the demo's.
        names: The departments whose keys occur.
        steps: Of all stages together.
        seed: Of the split, the rows and the attachments.
        out: The folder of the run.
        show: As in `fit`.
        split: Whose keys.
        recipe: How.
        registry: Where the composition's models are looked up; None is the default one.
        num_workers: Ray workers that share the steps; 0 trains in this process.
        selector: As in `TrainSettings`.

    Returns:
        The trained model.
    """
    model = build_model(composition, seed=seed, registry=registry)
    data = [
        {"prompt": row.prompt, "completion": row.completion}
        for row in training_rows(names, steps=steps, seed=seed, split=split, recipe=recipe)
    ]
    settings = TrainSettings(
        max_steps=steps,
        batch_size=recipe.batch_size,
        order="given",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=min(30, steps),
        min_lr_ratio=0.02,
        betas=(0.9, 0.98),
        checkpoint_every_steps=steps,
        log_every_steps=50,
        keep_checkpoints=1,
        seed=seed,
        device="cpu",
        num_workers=num_workers,
        selector=selector,
    )
    fit(model, data=data, out=out, settings=settings, show=show)
    return model


def training_rows(
    names: list[str], *, steps: int, seed: int, split: Split = "seen", recipe: Recipe = RECIPE
) -> list[Row]:
    """Draw the rows of all stages, in their order.

    Args:
        names: Departments whose keys are drawn from.
        steps: Of all stages together.
        seed: Of the split and the rows.
        split: Whose keys.
        recipe: Shares and stages.

    Returns:
        A batch of rows for each step.
    """
    rng = random.Random(f"recipe/{'+'.join(names)}/{seed}")
    draw_own = draw_key([key for name in names for key in departments()[name].keys(split, seed=seed)])

    def draw(rng: random.Random) -> tuple[str, int]:
        return draw_number(rng) if rng.random() < recipe.number_share else draw_own(rng)

    rows = []
    for step in range(steps):
        stage = _stage_at((step + 0.5) / steps, recipe.stages)
        for _ in range(recipe.batch_size):
            if rng.random() < recipe.numeric_share:
                rows.append(numeric_row(rng, held_out=False))
            else:
                num_operands = rng.choice(stage.num_operands)
                rows.append(expression_row(rng, draw if num_operands > 1 else draw_own, num_operands=num_operands))
    return rows


def _stage_at(progress: float, stages: tuple[Stage, ...]) -> Stage:
    ends = itertools.accumulate(stage.share for stage in stages)
    return next((stage for stage, end in zip(stages, ends, strict=True) if progress < end), stages[-1])
