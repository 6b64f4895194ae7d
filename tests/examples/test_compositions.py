"""The compositions of the examples with real models, and the rows that they are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calm_graph.evaluate.tasks.task import Task
from calm_graph.plan.graph import make_plan
from examples.code.composition import composition as code
from examples.low_resource.composition import composition as low_resource
from examples.low_resource.data import ENGLISH
from examples.maths.composition import composition as maths
from examples.multi.composition import composition as multi
from examples.rows import write_rows
from registry import registry


def test_two_single_compositions_are_parts_of_the_double_one() -> None:
    plans = [make_plan(each, registry=registry) for each in (low_resource, code, multi)]
    assert {plan.anchor.card.name for plan in plans} == {"smollm2-135m-instruct"}
    single = [found.key for plan in plans[:2] for found in plan.attachments]
    assert sorted(found.key for found in plans[2].attachments) == sorted(single)


def test_maths_reads_languages() -> None:
    plan = make_plan(maths, registry=registry)
    assert plan.anchor.card.name == "qwen2.5-coder-0.5b" and len(plan.attachments) == 4


def test_plain_english_has_a_prompt_as_every_row_of_a_file_with_prompts_must() -> None:
    assert all(task.prompt and task.train for task in ENGLISH.values())


def _task(name: str, rows: list[dict[str, str]], folder: Path) -> Task:
    file = f"{name}.jsonl"
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Task(name=name, data=file, train=(file,), prompt="{src}", reference=" {en}", metrics=("chrf",))


@pytest.mark.realmodels
def test_rows_are_short_always_the_same_and_answers_are_used_again_last(tmp_path: Path) -> None:
    few = [{"src": f"word {number} " + "long " * (number % 2 * 40), "en": str(number)} for number in range(12)]
    many = [{"src": f"wort {number}", "en": str(number)} for number in range(20)]
    tasks = {"many": _task("many", many, tmp_path), "few": _task("few", few, tmp_path)}
    for out in ("one", "two"):
        write_rows(
            tmp_path / out,
            tasks,
            anchor="smollm2-135m-instruct",
            max_tokens=30,
            num_train=16,
            num_dev=8,
            folder=tmp_path,
        )
    lines = (tmp_path / "one/train.jsonl").read_text().splitlines()
    assert lines == (tmp_path / "two/train.jsonl").read_text().splitlines()
    assert len(lines) == 6 + 16 and not any("long" in line for line in lines)
    answers = [json.loads(line)["completion"] for line in lines]
    assert len(set(answers)) == 20, "14 are new in the longer task, so two of its 16 are the other's again"
    assert (tmp_path / "one/dev.jsonl").read_text() == "", "the tasks name no rows to choose on"


@pytest.mark.realmodels
def test_rows_to_choose_on_are_not_trained_on(tmp_path: Path) -> None:
    task = _task("all", [{"src": f"word {number}", "en": str(number)} for number in range(12)], tmp_path)
    write_rows(
        tmp_path,
        {"all": task.model_copy(update={"dev": task.train})},
        anchor="smollm2-135m-instruct",
        max_tokens=30,
        num_train=12,
        num_dev=5,
        folder=tmp_path,
    )
    dev, train = ((tmp_path / f"{split}.jsonl").read_text().splitlines() for split in ("dev", "train"))
    assert len(dev) == 5 and len(train) == 7 and not {*dev} & {*train}
