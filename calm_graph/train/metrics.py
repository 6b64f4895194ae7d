"""What a run measured, as one JSON object per line; and in TensorBoard when it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a last line cut short by a killed process is left out."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsLog:
    """Appends records to `metrics.jsonl`, each on disk before the next step begins.

    Training records have step, epoch, loss, learning_rate, grad_norm, tokens_per_s, padding (share of the batch) and
    elapsed_s; evaluation records have step, eval_loss and eval_bits_per_byte.

    Args:
        folder: Of the run.
        first_step: A resumed run gives the step it goes on from; later records are of the steps it repeats, and go.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= first_step] if first_step else []
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")
        self._tensorboard: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1 if first_step else None)

    def write(self, record: dict[str, float]) -> None:
        """Append one record; it has a `step`."""
        rounded = {name: _round(value) for name, value in record.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in record.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, global_step=int(record["step"]))

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _round(value: float) -> float:
    """Keep what a float32 can tell: nine significant digits."""
    return value if isinstance(value, int) or not math.isfinite(value) else float(f"{value:.9g}")
