"""The demo's world and recipe: splits that do not overlap, rows over the right keys, a run of a few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calm_graph.model.composed import ComposedModel
from examples.arithmetic import compositions
from examples.arithmetic.data import DEPARTMENT_NAMES, Split, departments, prices
from examples.arithmetic.data import test_rows as rows_of
from examples.arithmetic.recipe import RECIPE, train_composition, training_rows


def words(prompt: str) -> list[str]:
    return re.findall(r"[a-z]+", prompt)


@pytest.mark.parametrize("name", DEPARTMENT_NAMES)
def test_splits_do_not_overlap_and_every_price_can_be_learnt(name: str) -> None:
    department = departments()[name]
    for seed in (0, 1, 2, 100):
        keys = {split: set(department.keys(split, seed=seed)) for split in ("seen", "unseen", "tune", "dev")}
        assert keys["seen"] | keys["unseen"] == set(department.prices)
        assert not keys["seen"] & keys["unseen"]
        assert keys["tune"] | keys["dev"] == keys["seen"]
        assert not keys["tune"] & keys["dev"]
        assert [len(keys[split]) for split in ("seen", "unseen", "tune", "dev")] == [240, 960, 192, 48]
        assert {department.prices[key] for key in keys["tune"]} == set(department.prices.values())


@pytest.mark.parametrize("split", ["seen", "tune"])
def test_training_rows_hold_keys_of_their_split_only(split: Split) -> None:
    keys = {key for name in DEPARTMENT_NAMES for key in departments()[name].keys(split, seed=1)}
    rows = training_rows(list(DEPARTMENT_NAMES), steps=7, seed=1, split=split)
    assert len(rows) == 7 * RECIPE.batch_size
    assert {word for row in rows for word in words(row.prompt)} <= keys


def test_answers_are_what_the_price_lists_say() -> None:
    known = prices()
    for row in [
        *training_rows(["garden"], steps=5, seed=0),
        *rows_of("mixed", DEPARTMENT_NAMES, split="unseen", count=50),
    ]:
        expression = re.sub(r"[a-z]+", lambda found: str(known[found[0]]), row.prompt.rstrip("="))
        assert sum(int(part) for part in re.findall(r"[+-]?\d+", expression)) == int(row.completion)


def test_a_short_run_leaves_a_model_that_loads(tmp_path: Path) -> None:
    model = train_composition(compositions.garden, ["garden"], steps=2, seed=0, out=tmp_path / "run", show="none")
    loaded = ComposedModel.from_pretrained(tmp_path / "run")
    assert all(
        (left == right).all()
        for left, right in zip(
            model.attachments.state_dict().values(), loaded.attachments.state_dict().values(), strict=True
        )
    )
