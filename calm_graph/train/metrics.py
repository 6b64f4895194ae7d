"""What a run measured, as one JSON object per line; and in TensorBoard and MLflow where they are installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, Any]
"""What was measured at one `step`: numbers by name, and under `written` numbers by attachment."""


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics file; a last line cut short by a killed process is left out."""
    if not path.exists():
        return []
    records: list[Record] = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Tracker(Protocol):
    """Where numbers go besides the file."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """The run is over."""


class MetricsLog:
    """Appends records to `metrics.jsonl`, each on disk before the next step begins.

    Training records have step, epoch, loss, learning_rate, grad_norm, tokens_per_s (real tokens), padding (share of the
    batch) and step_s, and every few steps `written`: by attachment, the norm of what it adds relative to the stream's.
    Evaluation records have step, eval_loss and eval_bits_per_byte. The same numbers go to TensorBoard when it is
    installed, and to MLflow when it is installed and MLFLOW_TRACKING_URI is set.

    Args:
        folder: Of the run.
        first_step: A resumed run gives the step it goes on from; later records are of the steps it repeats, and go.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= first_step] if first_step else []
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")
        self._trackers: list[Tracker] = []
        if importlib.util.find_spec("tensorboard") is not None:
            self._trackers.append(_TensorBoard(folder, first_step=first_step))
        if os.environ.get("MLFLOW_TRACKING_URI") and importlib.util.find_spec("mlflow") is not None:
            self._trackers.append(_MLflow(folder))

    def write(self, record: Record) -> None:
        """Append one record; it has a `step`."""
        self._file.write(json.dumps(_rounded(record)) + "\n")
        self._file.flush()
        numbers = dict(_flat(record))
        step = int(numbers.pop("step"))
        for tracker in self._trackers:
            tracker.write(numbers, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class _TensorBoard:
    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1 if first_step else None)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """One MLflow run for each run folder; a resumed run goes on in the same one."""

    def __init__(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        place = folder / "mlflow.json"
        if place.exists():
            self._run_id: str = json.loads(place.read_text())["run_id"]
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "calm_graph")
        found = self._client.get_experiment_by_name(name)
        experiment_id = found.experiment_id if found else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        place.write_text(json.dumps({"run_id": self._run_id}))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._run_id, name.replace("@", "."), value, step=step, synchronous=False)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _flat(record: Record) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _rounded(value: Any) -> Any:
    """Keep what a float32 can tell: nine significant digits."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value if isinstance(value, int) or not math.isfinite(value) else float(f"{value:.9g}")
