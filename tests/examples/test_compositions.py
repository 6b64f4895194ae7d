"""The compositions of the examples with real models, and the rows that they are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calm_graph.evaluate.tasks.task import Task
from calm_graph.plan.graph import make_plan
from examples.code.composition import composition as code
from examples.low_resource.composition import composition as low_resource
from examples.multi.composition import composition as multi
from examples.rows import write_rows
from registry import registry


def test_two_single_compositions_are_parts_of_the_double_one() -> None:
    plans = [make_plan(each, registry=registry) for each in (low_resource, code, multi)]
    assert {plan.anchor.card.name for plan in plans} == {"smollm2-135m-instruct"}
    single = [found.key for plan in plans[:2] for found in plan.attachments]
    assert sorted(found.key for found in plans[2].attachments) == sorted(single)


@pytest.mark.realmodels
def test_rows_are_short_and_always_the_same(tmp_path: Path) -> None:
    texts = [{"src": f"word {number} " + "long " * (number % 2 * 40), "en": str(number)} for number in range(20)]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in texts), encoding="utf-8")
    task = Task(
        name="t",
        data="all.jsonl",
        train=("all.jsonl",),
        prompt="{src}",
        reference=" {en}",
        metrics=("chrf",),
    )
    for out in ("one", "two"):
        write_rows(
            tmp_path / out,
            {"t": task},
            anchor="smollm2-135m-instruct",
            max_tokens=30,
            num_train=8,
            num_dev=8,
            folder=tmp_path,
        )
    lines = (tmp_path / "one/train.jsonl").read_text().splitlines()
    assert len(lines) == 8 and not any("long" in line for line in lines)
    assert lines == (tmp_path / "two/train.jsonl").read_text().splitlines()
    assert (tmp_path / "one/dev.jsonl").read_text() == "", "the task names no rows to choose on"
