"""Tasks: what is asked, and one clear error for what is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from calm_graph.errors import DeclarationError, EvaluationError
from calm_graph.evaluate.measures.sandbox import run_program
from calm_graph.evaluate.run import check_tasks
from calm_graph.evaluate.suites import SUITES, suite_tasks
from calm_graph.evaluate.tasks.files import load_tasks
from calm_graph.evaluate.tasks.task import Task
from calm_graph.evaluate.tasks.template import fill
from tests.evaluate.conftest import write_rows

ROWS = [{"q": f"What is {n}?", "a": str(n), "lang": ("even", "odd")[n % 2]} for n in range(20)]


def make(folder: Path, **changes: Any) -> Task:
    write_rows(folder / "rows.jsonl", ROWS)
    fields = {"name": "t", "data": str(folder / "rows.jsonl"), "prompt": "{q}\nA:", "reference": " {a}"}
    return Task.parse({**fields, "metrics": ["accuracy"], **changes}, where="here")


def test_templates_reach_parts_of_a_row_and_nothing_else() -> None:
    assert fill("{a[1]} {b} {{x}}", {"a": [1, 2], "b": ["u", "v\r\nw"]}) == "2 u\nv\nw {x}"
    with pytest.raises(ValueError, match="names 'c', but the row's fields are a"):
        fill("{c}", {"a": 1})
    with pytest.raises(ValueError, match="names"):
        fill("{a[0][__class__]}", {"a": [1]})


def test_a_limit_takes_the_same_rows_and_more_of_them(tmp_path: Path) -> None:
    five, ten = ({item.prompt for item in make(tmp_path, limit=n).items()} for n in (5, 10))
    assert len(five) == 5 and five < ten
    assert five != {item.prompt for item in make(tmp_path).items()[:5]}
    assert len(make(tmp_path, limit=50).items()) == 20


def test_examples_come_first_for_those_that_want_them(tmp_path: Path) -> None:
    task = make(tmp_path, num_shots=2, shots_from=str(tmp_path / "rows.jsonl"), shots_lang="odd")
    plain, shot = task.items()[0].prompt, task.items(few_shot=True, seed=1)[0].prompt
    assert plain == "What is 0?\nA:" and shot.endswith(f"\n\n{plain}")
    examples = shot.split("\n\n")[:-1]
    assert len(examples) == 2 and all(int(example.rpartition(" ")[2]) % 2 for example in examples)
    assert shot == task.items(few_shot=True, seed=1)[0].prompt != task.items(few_shot=True, seed=2)[0].prompt


def test_training_rows_have_the_same_templates(tmp_path: Path) -> None:
    task = make(tmp_path, train=[str(tmp_path / "rows.jsonl")], train_reference=" it is {a}")
    assert task.rows("train")[3] == {"prompt": "What is 3?\nA:", "completion": " it is 3"}
    assert task.rows("test")[3]["completion"] == " 3"
    with pytest.raises(EvaluationError, match="dev: the task names no files"):
        task.rows("dev")


def test_rows_of_the_same_id_lend_the_fields_that_a_row_lacks(tmp_path: Path) -> None:
    write_rows(tmp_path / "all.jsonl", [{"id": n, "q": "another", "worked": f"{n} as ever"} for n in range(9)])
    write_rows(tmp_path / "some.jsonl", [{"id": n, "q": f"Nambari {n}?"} for n in (7, 2)])
    changes: dict[str, Any] = {"data": str(tmp_path / "some.jsonl"), "reference": " {worked}"}
    task = make(tmp_path, also_from=str(tmp_path / "all.jsonl"), **changes)
    assert [item.prompt + item.reference for item in task.items()] == [
        "Nambari 7?\nA: 7 as ever",
        "Nambari 2?\nA: 2 as ever",
    ]
    assert task.rows("test")[1]["completion"] == " 2 as ever"
    assert [item.reference for item in task.model_copy(update={"limit": 1}).items()] == [task.items()[0].reference]
    for id in (9, None, [7]):
        write_rows(tmp_path / "some.jsonl", [{"id": 7, "q": "?"}, {"id": id, "q": "?"}])
        with pytest.raises(
            EvaluationError, match=rf"some.jsonl:2: got the id {re.escape(repr(id))}, but .*all.jsonl has"
        ):
            task.items()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metrics": ["chrff"]}, r"task.metrics: got .*got metric 'chrff', but there are chrf"),
        ({"prompt": "{q"}, r"task.prompt: .*write \{\{ and \}\}"),
        ({"prompt": "{}"}, "names no field"),
        ({"num_shots": 2}, "shots_from must name"),
        ({"metrics": ["pass@1"]}, "`program` must say"),
        ({"metrics": ["pass@5"], "program": "{answer}"}, "needs num_samples of at least 5"),
        ({"num_samples": 5}, "temperature must be above 0"),
        ({"limit": 0}, "task.limit"),
        ({"promt": "x"}, "did you mean 'prompt'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make(tmp_path, **changes)


def test_rows_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"rows.jsonl:1: the template names 'question', but the row"):
        check_tasks([make(tmp_path, prompt="{question}")])
    with pytest.raises(EvaluationError, match="comes twice"):
        check_tasks([make(tmp_path), make(tmp_path)])
    task = make(tmp_path)
    Path(task.data).write_text('{"q": 1}\n[]\n')
    with pytest.raises(EvaluationError, match=r"rows.jsonl:2: got a list, but an object is needed|fields are q"):
        check_tasks([task])
    with pytest.raises(EvaluationError, match=r"none.jsonl: cannot be read .*CALM_GRAPH_DATA"):
        check_tasks([make(tmp_path, data="none.jsonl")])


def test_tasks_are_read_from_files_of_every_kind(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    fields = '{"name": "x", "data": "rows.jsonl", "prompt": "{q}", "reference": "{a}", "metrics": ["accuracy"]}'
    (tmp_path / "one.json").write_text(fields)
    (tmp_path / "many.yaml").write_text(f"tasks:\n- {fields}\n")
    (tmp_path / "some.py").write_text(f"from calm_graph import Task\nimport json\nx = Task(**{fields})\n")
    for name in ("one.json", "many.yaml", "some.py"):
        (task,) = load_tasks(str(tmp_path / name))
        assert len(task.items()) == 20  # found beside the file
    own = {"prompt": "{q}", "reference": "{a}", "metrics": ["accuracy"]}
    assert load_tasks(str(tmp_path / "rows.jsonl"), fields=own)[0].name == "rows"
    with pytest.raises(EvaluationError, match=r"add --reference \.\.\. --metrics"):
        load_tasks(str(tmp_path / "rows.jsonl"), fields={"prompt": "{q}"})
    with pytest.raises(EvaluationError, match=r"got 'translatoin', which is neither .*did you mean 'translation'"):
        load_tasks("translatoin")
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(DeclarationError, match="declares none"):
        load_tasks(str(tmp_path / "none.py"))


@pytest.mark.parametrize("suite", [name for name in SUITES if name != "kv"])
def test_the_suites_fit_the_data(suite: str, real_data: Path) -> None:
    tasks = suite_tasks(suite)
    check_tasks(tasks, data=real_data)
    seen: set[tuple[str, ...]] = set()
    for task in tasks:
        assert not any("flores" in file for file in task.train)
        for split in ("train", "dev"):
            files = getattr(task, split)
            if files and files not in seen:
                seen.add(files)
                assert task.rows(split, folder=real_data)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="needs limits of processes")
def test_the_references_of_the_code_suite_pass_their_tests(real_data: Path) -> None:
    for task in suite_tasks("code"):
        if task.program is None:
            continue
        for item in task.items(folder=real_data)[:5]:
            answer = item.reference.removesuffix("[DONE]")
            found = run_program(fill(task.program, {**item.row, "answer": answer}))
            assert found.verdict == "passed", found.output
