"""Try a change of the recipe, the attachments or the frozen models, measured on dev keys and never on unseen ones."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from calm_graph.declare.composition import Augmenter, Composition
from examples.arithmetic.compositions import ANCHOR, compose
from examples.arithmetic.data import DEPARTMENT_NAMES, Split, Task, accuracy, test_rows
from examples.arithmetic.measure import answers
from examples.arithmetic.recipe import RECIPE, Stage, train_composition
from registry import ModelCard, Registry, registry

TUNING_SEED = 100
"""The split of a seed that no reported figure uses."""


def main() -> None:
    """Train on four fifths of the seen keys and print one JSON line: accuracies on the fifth that is left."""
    parser = argparse.ArgumentParser(prog="python -m examples.arithmetic.trial", description=__doc__)
    parser.add_argument("--name", default="", help="what the line is called")
    parser.add_argument("--departments", nargs="+", default=["garden"], choices=DEPARTMENT_NAMES)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--count", type=int, default=300, help="questions of each task")
    parser.add_argument("--seed", type=int, default=TUNING_SEED)
    parser.add_argument("--models", type=Path, help="folder of frozen models that stand in for the shipped ones")
    parser.add_argument("--recipe", type=json.loads, default={}, help="fields of Recipe, as JSON")
    parser.add_argument("--attach", type=json.loads, default={}, help="fields of Augmenter, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    changes = dict(args.recipe)
    if "stages" in changes:
        changes["stages"] = tuple(Stage(share, tuple(operands)) for share, operands in changes["stages"])
    started_s = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train_composition(
            changed(compose("trial", *args.departments), args.attach),
            args.departments,
            steps=args.steps,
            seed=args.seed,
            out=Path(folder),
            show="none",
            split="tune",
            recipe=replace(RECIPE, **changes),
            registry=with_models(args.models) if args.models else None,
        )
    line: dict[str, object] = {
        "name": args.name,
        "steps": args.steps,
        "cpu_seconds": round(time.process_time() - started_s),
    }
    for task, split in tasks(args.departments):
        rows = test_rows(task, args.departments, split=split, count=args.count, seed=args.seed)
        found = answers(model, model.tokenizer, [row.prompt for row in rows])
        line[f"{task} {split}"] = round(100 * accuracy(found, rows), 1)
    print(json.dumps(line), flush=True)


def tasks(names: list[str]) -> list[tuple[Task, Split]]:
    """Return what is asked of a trial of these departments."""
    found: list[tuple[Task, Split]] = [("substitution", "dev"), ("numeric", "dev")]
    found += [("key_value", "tune"), ("key_value", "dev")]
    return found + ([("mixed", "dev")] if len(names) > 1 else [])


def changed(composition: Composition, fields: dict[str, object]) -> Composition:
    """Return a composition whose augmenters are declared with these fields."""
    augmenters = [
        Augmenter.model_validate({**augmenter.model_dump(), **fields}) for augmenter in composition.augmenters
    ]
    return composition.model_copy(update={"augmenters": tuple(augmenters)})


def with_models(folder: Path) -> Registry:
    """Return a registry in which the models found in a folder take the places of the shipped ones."""
    cards = []
    for name in (ANCHOR, *(f"demo-prices-{name}" for name in DEPARTMENT_NAMES)):
        here = folder / name
        cards.append(ModelCard(name=name, source=f"folder:{here.resolve()}") if here.is_dir() else registry.get(name))
    return Registry(cards)


if __name__ == "__main__":
    main()
