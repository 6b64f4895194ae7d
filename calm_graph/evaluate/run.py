"""Evaluate tasks by systems: what was answered before is not asked again, and a run that was stopped goes on."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calm_graph.errors import CalmGraphError, EvaluationError
from calm_graph.evaluate.measures.metrics import Outcome, metric
from calm_graph.evaluate.measures.sandbox import passes
from calm_graph.evaluate.reports.measured import Measured, results_of
from calm_graph.evaluate.reports.results import Results
from calm_graph.evaluate.systems.asking import Asking, StoppedError
from calm_graph.evaluate.systems.base import System
from calm_graph.evaluate.tasks.task import Item, Task
from calm_graph.evaluate.tasks.template import fill
from calm_graph.interrupts import StopRequest
from calm_graph.progress import Show, progress, say


@dataclass(frozen=True, slots=True)
class Candidate:
    """A system that is made when its turn comes, so that not all models are in memory at once.

    Args:
        name: What results call it.
        make: Loads it; may raise StoppedError where the run is asked to stop meanwhile.
    """

    name: str
    make: Callable[[], System]


@dataclass(slots=True)
class Evaluated:
    """What came of a run.

    Args:
        measured: Row by row, of every task and system that was finished.
        problems: What could not be evaluated, and why.
        stopped: Whether the run was asked to stop before its end.
    """

    measured: list[Measured] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def results(self) -> Results:
        """Values with their intervals, averages over languages, and differences from the composition."""
        return results_of(self.measured)


def evaluate(
    tasks: Sequence[Task],
    candidates: Sequence[Candidate],
    *,
    predictions: Path,
    data: Path | None = None,
    seed: int = 0,
    show: Show = "auto",
    stop: StopRequest | None = None,
    on_measured: Callable[[Sequence[Measured]], object] | None = None,
) -> Evaluated:
    """Evaluate every task by every system.

    Args:
        tasks: What is asked.
        candidates: Who is asked, one after the other.
        predictions: Folder of what was answered; an answer that is there already is used.
        data: Folder of the tasks' files; None: the one that CALM_GRAPH_DATA names.
        seed: Of examples and draws.
        show: How progress is shown.
        stop: Looked at after every answer.
        on_measured: Hears of all that was measured so far, after each system.

    Returns:
        What was measured.

    Raises:
        EvaluationError: A task's data cannot be used; nothing was asked yet.
    """
    asking = Asking(predictions, show, stop or StopRequest())
    check_tasks(tasks, data=data, seed=seed)
    done = Evaluated()
    for candidate in candidates:
        if asking.stop.requested:
            break
        try:
            system = candidate.make()
        except StoppedError:
            break
        except CalmGraphError as error:  # whatever stops one system, the others are evaluated
            done.problems.append(f"{candidate.name}: {error}")
            say(show, done.problems[-1])
            continue
        for task in tasks:
            try:
                measured, problems = _measured(task, system, data=data, seed=seed, asking=asking)
            except StoppedError:
                break
            done.measured += measured
            for problem in problems:
                done.problems.append(f"{system.name}, {task.label}: {problem}")
                say(show, done.problems[-1])
        del system
        gc.collect()  # a model may be part of a circle, and the next one needs its room
        if on_measured is not None:
            on_measured(done.measured)
    done.stopped = asking.stop.requested
    return done


def check_tasks(tasks: Sequence[Task], *, data: Path | None = None, seed: int = 0) -> None:
    """Read all rows once, so that what is wrong with them is said before any model is loaded.

    Args:
        tasks: What will be asked.
        data: Folder of their files; None: the one that CALM_GRAPH_DATA names.
        seed: Of examples.

    Raises:
        EvaluationError: A file or a row cannot be used, or two tasks have the same name.
    """
    keys = [task.key for task in tasks]
    if twice := [task.label for index, task in enumerate(tasks) if task.key in keys[:index]]:
        raise EvaluationError(f"tasks: {twice[0]} comes twice; give each its own suite, name or language")
    for task in tasks:
        task.items(folder=data, few_shot=True, seed=seed)


def _measured(
    task: Task, system: System, *, data: Path | None, seed: int, asking: Asking
) -> tuple[list[Measured], list[EvaluationError]]:
    """Measure what can be: a system that cannot generate may be able to score, and the other way round."""
    items = task.items(folder=data, few_shot=system.few_shot, seed=seed)
    needs = {metric(name).needs for name in task.metrics}
    names = (*task.key, system.name)
    found: dict[str, Sequence[Any]] = {}
    problems = []
    try:
        if needs & {"answers", "programs"}:
            prompts = [item.prompt for item in items]
            found["answers"] = asking.answers(system, prompts, task.decoding(seed=seed), names=names)
        if "programs" in needs:
            label = f"{system.name} {task.label} programs"
            found["programs"] = _passed(task, items, found["answers"], label=label, asking=asking)
    except EvaluationError as error:
        problems.append(error)
    try:
        if "nats" in needs:
            found["nats"] = asking.nats(system, [(item.prompt, item.reference) for item in items], names=names)
    except EvaluationError as error:
        problems.append(error)
    outcomes = [
        Outcome(
            reference=item.reference,
            target=item.target,
            answers=found["answers"][index] if "answers" in found else (),
            nats=found["nats"][index] if "nats" in found else math.nan,
            passed=found["programs"][index] if "programs" in found else (),
            answer_kind=task.answer,
        )
        for index, item in enumerate(items)
    ]
    rows = _digest(outcomes)
    measured = [
        Measured(*task.key, system.name, seed, name, rows, metric(name).sums(outcomes))
        for name in task.metrics
        if metric(name).needs in found
    ]
    return measured, problems


def _passed(
    task: Task, items: Sequence[Item], answers: Sequence[Sequence[str]], *, label: str, asking: Asking
) -> list[list[bool]]:
    assert task.program is not None
    passed = []
    with progress(asking.show, label=label, total=len(items)) as advance:
        for item, texts in zip(items, answers, strict=True):
            passed.append([passes(fill(task.program, {**item.row, "answer": text})) for text in texts])
            advance(1)
            if asking.stop.requested:
                raise StoppedError
    return passed


def _digest(outcomes: Sequence[Outcome]) -> str:
    """What tells other test rows from these."""
    texts = [(outcome.reference, outcome.target) for outcome in outcomes]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
