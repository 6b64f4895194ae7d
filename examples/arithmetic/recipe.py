"""How the demo's compositions are trained: first what a key is worth, then arithmetic with keys."""

from __future__ import annotations

import random
from pathlib import Path

from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.train import fit
from calm_graph.train.progress import Show
from examples.arithmetic.data import Row, departments, draw_key, draw_number, expression_row, numeric_row

NUMERIC_SHARE = 0.3
NUMBER_OPERAND_SHARE = 0.3
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
# Arithmetic with keys teaches nothing while a key means nothing: trained on it from the start, the attachments learn to
# write the average answer everywhere and stay there. A key alone (`aba=`) is learnt in a hundred steps.
STAGES = ((0.2, (1,)), (0.2, (1, 2)), (0.6, (1, 2, 3, 3)))
"""Share of the steps, and the numbers of operands drawn in it."""


def train_composition(
    composition: Composition, names: list[str], *, steps: int, seed: int, out: Path, show: Show = "auto"
) -> ComposedModel:
    """Train a composition on expressions over 20% of the keys.

    Args:
        composition: One of the demo's.
        names: The departments whose keys occur.
        steps: Of all stages together.
        seed: Of the split, the rows and the attachments.
        out: A folder; each stage leaves its run in it, and the last one is the result.
        show: As in `fit`.

    Returns:
        The trained model.
    """
    model = build_model(composition, seed=seed)
    for stage, (share, operands) in enumerate(STAGES, start=1):
        num_steps = max(1, round(share * steps))
        settings = TrainSettings(
            max_steps=num_steps,
            batch_size=BATCH_SIZE,
            # Sorted by length, a batch would hold one kind of row only.
            pool_batches=1,
            learning_rate=LEARNING_RATE,
            warmup_steps=min(30, num_steps),
            # Earlier stages keep their speed; only the last one comes to rest.
            min_lr_ratio=0.02 if stage == len(STAGES) else 1.0,
            betas=(0.9, 0.98),
            checkpoint_every_steps=num_steps,
            log_every_steps=50,
            keep_checkpoints=1,
            seed=seed,
            device="cpu",
        )
        rows = stage_rows(names, operands, count=num_steps * BATCH_SIZE, seed=seed * 10 + stage, split_seed=seed)
        data = [{"prompt": row.prompt, "completion": row.completion} for row in rows]
        fit(model, data=data, out=out / f"stage-{stage}", settings=settings, show=show)
    return model


def stage_rows(names: list[str], operands: tuple[int, ...], *, count: int, seed: int, split_seed: int) -> list[Row]:
    """Draw the rows of one stage.

    Args:
        names: Departments whose seen keys are drawn from.
        operands: Numbers of operands, drawn from with equal chance.
        count: Number of rows.
        seed: Of the rows.
        split_seed: Of the split into seen and unseen keys.

    Returns:
        The rows, `NUMERIC_SHARE` of them without any key.
    """
    rng = random.Random(f"recipe/{'+'.join(names)}/{operands}/{seed}")
    draw_seen = draw_key([key for name in names for key in departments()[name].keys("seen", seed=split_seed)])

    def draw(rng: random.Random) -> tuple[str, int]:
        return draw_number(rng) if rng.random() < NUMBER_OPERAND_SHARE else draw_seen(rng)

    rows = []
    for _ in range(count):
        if rng.random() < NUMERIC_SHARE:
            rows.append(numeric_row(rng, held_out=False))
        else:
            num_operands = rng.choice(operands)
            rows.append(expression_row(rng, draw if num_operands > 1 else draw_seen, num_operands=num_operands))
    return rows
