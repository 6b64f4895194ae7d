"""The folder of a run: what lies where, and whether a run may start or go on there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.train.state import list_states

# What may differ when a run goes on: how long it is, what is kept and shown, and who runs a batch in which pieces.
_MAY_CHANGE = frozenset(
    {
        "max_steps",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "sharding",
        "placement",
        "patience",
        "keep_checkpoints",
        "checkpoint_every_steps",
        "eval_every_steps",
        "log_every_steps",
        "device",
        "num_workers",
        "use_gpu",
        "cpus_per_worker",
        "max_failures",
        "hang_timeout_s",
        "wait_for_resources_s",
    }
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's files: the composition itself at `path`, which `from_pretrained` loads, and beside it the run's own.

    Args:
        path: The `out` of the run.
    """

    path: Path

    @property
    def name(self) -> str:
        """The folder as messages name it."""
        return str(self.path)

    @property
    def shared(self) -> str:
        """The folder as every node can name it."""
        return str(self.path.absolute())

    def remove(self, name: str) -> None:
        """Remove a directory of the run, if it is there."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def absolute(self) -> RunFolder:
        """The same folder for a process that runs in another directory."""
        return RunFolder(self.path.absolute())

    def on_this_node(self) -> RunFolder:
        """The folder as a worker finds it: all nodes share it."""
        return self

    def fetch(self) -> None:
        """Do nothing: the files are here."""

    def publish(self) -> None:
        """Do nothing: who reads this folder sees the files."""

    @property
    def states(self) -> Path:
        """Holds `step-N/`, the resumable states."""
        return self.path / "checkpoints"

    @property
    def settings_file(self) -> Path:
        """The settings the run uses, defaults included."""
        return self.path / "settings.json"

    @property
    def result_file(self) -> Path:
        """Written when a run is over."""
        return self.path / "result.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def plot_file(self) -> Path:
        """The loss over the steps."""
        return self.path / "loss.png"

    @property
    def writes_plot_file(self) -> Path:
        """How much each attachment writes, over the steps."""
        return self.path / "attachments.png"

    def last_state(self) -> Path | None:
        """Return the newest resumable state."""
        states = list_states(self.states)
        return states[-1] if states else None

    def check(self, settings: TrainSettings, *, resume: bool) -> None:
        """Refuse a run that may not begin or go on here; nothing is written.

        Args:
            settings: Of the run.
            resume: Whether an earlier run may be continued.

        Raises:
            TrainingError: An earlier run is there and `resume` is not asked for, it had other settings, or the folder
                cannot be written.
        """
        state = self.last_state()
        if not resume and (self.result_file.exists() or state is not None or self._holds_composition()):
            which = "a finished run" if self.result_file.exists() else f"an unfinished run ({state or 'no state yet'})"
            which = which if self.settings_file.exists() else "a composition that was not trained here"
            raise TrainingError(f"{self.name}: holds {which}; go on with resume (--resume), or choose another out")
        if resume and self._holds_composition() and not self.settings_file.exists():
            raise TrainingError(f"{self.name}: holds a composition, but no run to resume; choose another out")
        if state is not None and self.settings_file.exists():
            self._check_same(settings)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise TrainingError(f"{self.name}: cannot be written ({error}); choose another out") from None

    def open(self, settings: TrainSettings) -> None:
        """Begin or go on with a run that `check` allowed: its settings are stored, and it counts as unfinished."""
        self.result_file.unlink(missing_ok=True)
        write_json(self.settings_file, settings.model_dump(mode="json"))

    def remove_leftovers(self) -> None:
        """Remove what a killed process was still writing; none of it could be loaded."""
        for leftover in (*self.states.glob(".*.tmp"), *self.path.glob(".*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def _holds_composition(self) -> bool:
        return (self.path / "composition.json").exists()

    def _check_same(self, settings: TrainSettings) -> None:
        before = TrainSettings.parse(json.loads(self.settings_file.read_text()), where=str(self.settings_file))
        changed = [
            f"{name} was {old!r}, now {getattr(settings, name)!r}"
            for name, old in before
            if name not in _MAY_CHANGE and old != getattr(settings, name)
        ]
        if changed:
            raise TrainingError(
                f"{self.name}: cannot resume with other settings: {'; '.join(changed)}. "
                f"Keep them, or choose another out; allowed to change: {', '.join(sorted(_MAY_CHANGE))}"
            )


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace a JSON file as a whole."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(scratch, path)
