"""What a sweep found: one JSON line for each trial, the best declaration, and what may be gone on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.declare.space import Choice
from calm_graph.errors import TrainingError
from calm_graph.train.folder import write_json

TRIALS_FILE = "trials.jsonl"
BEST_FILE = "best.json"
PLOT_FILE = "sweep.png"
_SWEEP_FILE = "sweep.json"

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One combination and what came of it.

    Args:
        name: Of the choice, and of the trial's folder.
        choice: The values that were tried.
        state: `stopped` when others were better early on, `failed` with the reason in `error`.
        score: Bits per byte of the held-out completions at the best evaluation; None when there was none.
        first_score: The same before training, which is the anchor's own.
        num_parameters: That the attachments add.
        steps: Done.
        seconds: From its start to its end.
        error: Why it failed.
    """

    name: str
    choice: Choice
    state: State
    score: float | None = None
    first_score: float | None = None
    num_parameters: int | None = None
    steps: int = 0
    seconds: float = 0.0
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        choice = self.choice.model_dump(mode="json")
        return {**{name: getattr(self, name) for name in self.__slots__}, "choice": choice}


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """All trials of a sweep.

    Args:
        folder: Where trials.jsonl, best.json, sweep.png and the trials' runs are.
        trials: By score, the best first; those without one last.
        front: Names of the trials that no other beats in both score and parameters.
        best: The finished trial with the best score; None when none finished.
    """

    folder: Path
    trials: tuple[Trial, ...]
    front: tuple[str, ...]
    best: Trial | None


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The files of a sweep.

    Args:
        path: The `out` of the sweep.
    """

    path: Path

    def open(self, facts: dict[str, Any], *, resume: bool) -> tuple[Trial, ...]:
        """Make the folder ready and return the trials that need not run again: those that did not fail.

        Args:
            facts: What all trials have in common; a sweep can only be gone on with if it is the same.
            resume: Whether an earlier sweep may be gone on with.

        Raises:
            TrainingError: Another sweep is there, or one is and `resume` is not asked for.
        """
        file = self.path / _SWEEP_FILE
        if file.exists():
            if not resume:
                raise TrainingError(f"{self.path}: holds a sweep; go on with resume (--resume), or choose another out")
            before = json.loads(file.read_text("utf-8"))
            changed = [name for name in facts if before.get(name) != facts[name]]
            if changed:
                raise TrainingError(
                    f"{self.path}: cannot go on with another {' and '.join(changed)}; its trials would not compare. "
                    "Keep it as it was, or choose another out"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, facts)
        kept = tuple(trial for trial in self._read() if trial.state != "failed")
        # What failed, and a line that a killed process left half, go; both will be written anew.
        lines = "".join(json.dumps(trial.record()) + "\n" for trial in kept)
        scratch = self.path / f".{TRIALS_FILE}.tmp"
        scratch.write_text(lines, "utf-8")
        scratch.replace(self.path / TRIALS_FILE)
        return kept

    def add(self, trial: Trial) -> None:
        """Append a trial."""
        with (self.path / TRIALS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial.record(), ensure_ascii=False) + "\n")

    def write_best(self, trial: Trial, composition: Composition, settings: TrainSettings) -> None:
        """Write the best declaration, which `calm-graph check` and `train` take as it is."""
        write_json(
            self.path / BEST_FILE,
            {
                "trial": trial.name,
                "score": trial.score,
                "composition": trial.choice.composed(composition).model_dump(mode="json"),
                "settings": trial.choice.settings(settings).model_dump(mode="json"),
            },
        )

    def _read(self) -> list[Trial]:
        file = self.path / TRIALS_FILE
        trials = []
        for line in file.read_text("utf-8").splitlines() if file.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            trials.append(Trial(**{**record, "choice": Choice.model_validate(record["choice"])}))
        return trials


def ranked(folder: Path, trials: Iterable[Trial]) -> SweepResult:
    """Return the trials as a result: by score, with the front and the best."""
    ordered = sorted(trials, key=lambda trial: (trial.score is None, trial.score or 0.0, trial.name))
    finished = [trial for trial in ordered if trial.state == "finished" and trial.score is not None]
    return SweepResult(
        folder=folder,
        trials=tuple(ordered),
        front=pareto_front(finished),
        best=finished[0] if finished else None,
    )


def pareto_front(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return the names of the trials that no other one beats: none has as good a score with fewer parameters.

    Args:
        trials: With scores.

    Returns:
        By number of parameters, ascending.
    """
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.num_parameters or 0, trial.score or 0.0)):
        assert trial.score is not None
        if not front or trial.score < (front[-1].score or 0.0):
            front.append(trial)
    return tuple(trial.name for trial in front)
