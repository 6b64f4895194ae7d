"""Train the baselines of a composition on its rows: the same order, batches, steps, loss and choice of the best."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.sources import Rows, open_rows, package_of
from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines import ablations, full_finetune, lora
from calm_graph.evaluate.baselines.ablations import derive, is_ablation
from calm_graph.evaluate.baselines.random_weights import randomise, read_random
from calm_graph.evaluate.baselines.reference import Reference
from calm_graph.evaluate.baselines.trained_anchor import TrainedAnchor
from calm_graph.evaluate.reports.results import split_rows
from calm_graph.plan.graph import make_plan
from calm_graph.progress import Show
from calm_graph.train.loop import TrainResult
from calm_graph.train.rows import longest_sample
from calm_graph.train.run import fit
from registry import Registry
from registry.weights import load_tokenizer

LEARNING_RATES: Mapping[str, float] = {
    "lora": lora.LEARNING_RATE,
    "full_finetune": full_finetune.LEARNING_RATE,
}
"""Baseline -> the peak of its learning rate, where nothing else is said: attachments' own is not theirs."""


def train_baselines(
    composition: str | Path | Composition | Reference,
    names: Sequence[str],
    *,
    data: Rows,
    eval_data: Rows | None = None,
    columns: Columns | None = None,
    settings: TrainSettings | None = None,
    learning_rates: Mapping[str, float] | None = None,
    replaced: Mapping[str, str] | None = None,
    out: str | Path,
    registry: Registry | None = None,
    show: Show = "auto",
) -> dict[str, TrainResult]:
    """Train baselines one after the other, each in `out/NAME`; what is there is gone on with, or done.

    Everything but the learning rate is that of the composition's own run. What is about augmenters or about several
    workers does not apply: a baseline trains in this process, and its steps are those of any number of workers.

    Args:
        composition: What they are compared with: the folder of its run, its file, the declaration, or what was
            read of it.
        names: `lora` (as many trained parameters as the composition has), `full_finetune`, and ablations of the
            composition: `composed_prompt` and the like (`ablations.NAMES`). `lora_rows_500`, `composed_rows_500`: the
            same on 500 of the rows, which are among those of any larger number.
        data: The rows that the composition is trained on.
        eval_data: Held-out rows, by which the best step is chosen.
        columns: As in `fit`.
        settings: None takes those of the composition's run, else every default.
        learning_rates: Name -> the peak of its learning rate, where it is not that of `LEARNING_RATES`; ablations
            have the composition's.
        replaced: For `composed_vanilla`: augmenter -> card of the model that is read in its place.
            `composed_random` makes its own from every augmenter, in `out/random`.
        out: Folder of the baselines' runs.
        registry: Where names are looked up; None is the default registry.
        show: As in `fit`.

    Returns:
        Name -> how its run ended.

    Raises:
        EvaluationError: A name is none of these, an ablation changes nothing, or the rows are not those that the
            composition was trained on.
        DeclarationError: The composition cannot be read.
        TrainingError: As `fit` says.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the same call goes on.
    """
    if unknown := [name for name in names if not is_trained(name)]:
        raise EvaluationError(
            f"baselines: got {unknown[0]!r}, but {', '.join((*LEARNING_RATES, *ablations.NAMES))} can be trained"
        )
    if unknown := sorted(set(learning_rates or {}) - set(names)):
        raise EvaluationError(f"learning_rates: got {unknown[0]!r}, but trained are {', '.join(names)}")
    if isinstance(composition, Reference):
        reference = composition
    else:
        reference = Reference.of(composition, registry=registry)
    settings = (settings or reference.settings or TrainSettings()).updated(
        num_workers=0, use_gpu=False, sharding="none", placement={}, selector=None
    )
    _check_rows(reference, data, columns, settings)
    # All mistakes in ablations are found before the first run.
    derived = {
        name: _ablation(name, reference, replaced, Path(out) / "random", settings.seed)
        for name in names
        if is_ablation(name)
    }
    results = {}
    for name in names:
        base, num_rows = split_rows(name)
        default = LEARNING_RATES.get(base, settings.learning_rate)
        own = settings.updated(learning_rate=(learning_rates or {}).get(name, default))
        if base in LEARNING_RATES:
            own = own.updated(told_layer=None)  # there are no attachments that could make up for what was not told
        rows: dict[str, Any] = {"data": data, "eval_data": eval_data, "columns": columns}
        if num_rows is not None:
            held_out = None if eval_data is None else _read(eval_data, columns)
            drawn = some_rows(name, num_rows, _read(data, columns), seed=settings.seed)
            rows = {"data": drawn, "eval_data": held_out}
        results[name] = fit(
            derived.get(name) or make_baseline(base, reference, own),
            **rows,
            out=Path(out) / name,
            settings=own,
            resume=True,
            registry=reference.registry,
            show=show,
        )
    return results


def is_trained(name: str) -> bool:
    """Tell whether `train_baselines` knows a name."""
    return split_rows(name)[0] in LEARNING_RATES or is_ablation(name)


def some_rows(name: str, count: int, rows: Sequence[Any], *, seed: int) -> list[Any]:
    """Draw rows, in their order.

    Args:
        name: Of the baseline, for errors.
        count: How many; those of a smaller number are among them.
        rows: All of them.
        seed: Of the draw.

    Returns:
        So many.

    Raises:
        EvaluationError: There are fewer.
    """
    if count > len(rows):
        raise EvaluationError(f"{name}: there are only {len(rows)} rows")
    # A shuffle and not a sample: fewer rows are always among more.
    indices = list(range(len(rows)))
    random.Random(seed).shuffle(indices)
    return [rows[index] for index in sorted(indices[:count])]


def _read(data: Rows, columns: Columns | None) -> list[Any]:
    if package_of(data) == "ray":
        raise EvaluationError("data: rows of a ray.data.Dataset cannot be drawn here; limit the data set itself")
    return [row for _, row in open_rows(data, columns).rows]


def make_baseline(name: str, reference: Reference, settings: TrainSettings) -> TrainedAnchor:
    """Build a baseline as it is before training; `fit` takes it as it takes a composed model.

    Args:
        name: `lora` or `full_finetune`.
        reference: What it is compared with.
        settings: Of its run.

    Returns:
        The model.

    Raises:
        EvaluationError: It cannot be made for this composition.
    """
    if name == "lora":
        return lora.LoraAnchor(reference.anchor, settings=settings, num_parameters=reference.num_parameters)
    return full_finetune.FullFinetune(
        reference.anchor, settings=settings, num_composition_parameters=reference.num_parameters
    )


def _ablation(
    name: str, reference: Reference, replaced: Mapping[str, str] | None, folder: Path, seed: int
) -> Composition:
    composition, base = reference.plan.composition, split_rows(name)[0]
    if base == "composed_random":
        replaced = {}
        for augmenter in composition.augmenters:
            if not isinstance(augmenter.name, str):
                raise EvaluationError(f"{name}: augmenter {augmenter.key!r} is itself a composition; name a model")
            own = folder / augmenter.name
            card = read_random(own) or randomise(reference.registry.get(augmenter.name), own, seed=seed)
            replaced[augmenter.name] = reference.registry.add(card, replace=True).name
    derived = derive(composition, name, replaced=replaced if base in ablations.REPLACED else None)
    make_plan(derived, registry=reference.registry)
    return derived


def _check_rows(reference: Reference, data: Rows, columns: Columns | None, settings: TrainSettings) -> None:
    """Refuse rows that the composition was not trained on: the comparison would be of data, not of methods."""
    if reference.data_fingerprint is None:
        return
    found = load_dataset(
        data,
        load_tokenizer(reference.anchor),
        max_length=longest_sample(reference.plan, settings),
        long_rows=settings.long_rows,
        columns=columns,
        told=settings.told_layer is not None,
    ).fingerprint()
    if found != reference.data_fingerprint:
        raise EvaluationError(
            f"data: its rows ({found[:19]}) are not those that {reference.plan.composition.name!r} was trained on "
            f"({reference.data_fingerprint[:19]}); give the same rows in the same order, or the composition's "
            "declaration instead of its run"
        )
