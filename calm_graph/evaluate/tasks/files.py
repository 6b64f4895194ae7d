"""Reading tasks: a suite's name, a file that declares some, or a JSONL of rows with the task on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calm_graph.declare.files import read_fields, run_file
from calm_graph.errors import DeclarationError, EvaluationError, Problem
from calm_graph.evaluate.suites import suite_tasks
from calm_graph.evaluate.tasks.task import Task


def load_tasks(named: str, *, fields: Mapping[str, Any] | None = None) -> list[Task]:
    """Return tasks.

    Args:
        named: A suite; a `.py` file with a module-level `tasks` (or a single Task under any name); a `.json` or
            `.yaml` file with the fields of one task, or a list of them; or a `.jsonl` file of rows.
        fields: Fields of the task whose rows a `.jsonl` holds.

    Returns:
        The tasks. Files of rows that stand beside a declaring file are found from anywhere.

    Raises:
        DeclarationError: A task is wrong; all its problems are listed.
        EvaluationError: There is no such suite or file.
    """
    path = Path(named)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise EvaluationError(f"{path}: no such file")
        given = {"name": path.stem, "data": str(path.resolve()), **(fields or {})}
        if missing := [name for name in ("prompt", "reference", "metrics") if name not in given]:
            flags = " ".join(f"--{name} ..." for name in missing)
            raise EvaluationError(f"{path}: rows say nothing about what is asked; add {flags}")
        return [Task.parse(given, where=str(path))]
    if path.suffix not in (".py", ".json", ".yaml", ".yml"):
        return suite_tasks(named)
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file")
    tasks = _from_python(path) if path.suffix == ".py" else _from_fields(path)
    return [_beside(task, path.resolve().parent) for task in tasks]


def _from_python(path: Path) -> list[Task]:
    names = run_file(path, root="tasks")
    found = names.get("tasks")
    if found is None:
        found = [value for value in names.values() if isinstance(value, Task)]
    if not isinstance(found, Sequence) or not found or not all(isinstance(each, Task) for each in found):
        raise DeclarationError(
            [Problem("tasks", "declares none; write `tasks = [Task(...), ...]` at its top level")], where=str(path)
        )
    return list(found)


def _from_fields(path: Path) -> list[Task]:
    data = read_fields(path, root="tasks")
    if isinstance(data, dict) and "tasks" in data:
        data = data["tasks"]
    return [Task.parse(each, where=str(path)) for each in (data if isinstance(data, list) else [data])]


def _beside(task: Task, folder: Path) -> Task:
    """Return the task with the files that stand beside its declaration named in full."""

    def full(file: str) -> str:
        return str(folder / file) if (folder / file).is_file() else file

    return task.model_copy(
        update={
            "data": full(task.data),
            "train": tuple(map(full, task.train)),
            "dev": tuple(map(full, task.dev)),
            "also_from": None if task.also_from is None else full(task.also_from),
            "shots_from": None if task.shots_from is None else full(task.shots_from),
        }
    )
