"""What a person sees of a training run: losses and evaluations, as a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from calm_graph.progress import Show
from calm_graph.train.evaluation import Evaluation
from calm_graph.train.metrics import Record


class Reporter(Protocol):
    """Hears of every step."""

    def start(self, step: int) -> None:
        """Training begins, or goes on, after so many steps."""

    def step(self, step: int, record: Record) -> None:
        """A step is done."""

    def evaluation(self, step: int, result: Evaluation, *, best: bool) -> None:
        """An evaluation is done."""

    def say(self, message: str) -> None:
        """Something a person should know."""

    def close(self) -> None:
        """The run is over."""


def make_reporter(show: Show, *, max_steps: int, log_every_steps: int) -> Reporter:
    """Return a bar when stderr is a terminal and `show` is `auto`, plain lines for the others, or silence."""
    if show == "none":
        return Silent()
    if show == "auto" and sys.stderr.isatty():
        return Bar(max_steps=max_steps)
    return Lines(max_steps=max_steps, log_every_steps=log_every_steps)


class Silent:
    """Says nothing."""

    def start(self, step: int) -> None:
        """Do nothing."""

    def step(self, step: int, record: Record) -> None:
        """Do nothing."""

    def evaluation(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """One line every few steps, for logs.

    Args:
        max_steps: Of the run.
        log_every_steps: Steps between two lines.
    """

    def __init__(self, *, max_steps: int, log_every_steps: int) -> None:
        self.max_steps = max_steps
        self.log_every_steps = log_every_steps

    def start(self, step: int) -> None:
        """Write a line when a run goes on."""
        if step:
            self.say(f"going on after step {step}/{self.max_steps}")

    def step(self, step: int, record: Record) -> None:
        """Write a line when it is time."""
        if step % self.log_every_steps == 0 or step == self.max_steps:
            self.say(
                f"step {step}/{self.max_steps}  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  "
                f"{record['tokens_per_s']:,.0f} tokens/s  padding {record['padding']:.1%}{_written(record)}"
            )

    def evaluation(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Write a line."""
        self.say(f"step {step}/{self.max_steps}  {_evaluated(result)}{'  (best)' if best else ''}")

    def say(self, message: str) -> None:
        """Write a line."""
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing."""


class Bar:
    """A progress bar with loss, tokens per second and the last evaluation.

    Args:
        max_steps: Of the run.
    """

    def __init__(self, *, max_steps: int) -> None:
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[written]}"),
            TextColumn("{task.fields[evaluated]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID = self._progress.add_task(
            "train", start=False, total=max_steps, loss="", speed="", written="", evaluated=""
        )
        self._progress.start()

    def start(self, step: int) -> None:
        """Put the bar where the run begins; the time that is left is reckoned from here."""
        self._progress.reset(self._task, completed=step)
        if step:
            self.say(f"going on after step {step}")

    def step(self, step: int, record: Record) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            completed=step,
            loss=f"loss {record['loss']:.4f}",
            speed=f"{record['tokens_per_s']:,.0f} tokens/s, {record['padding']:.0%} padding",
        )
        if "written" in record:
            self._progress.update(self._task, written=_written(record).strip())

    def evaluation(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Show the result beside the bar, and above it when it is the best."""
        self._progress.update(self._task, evaluated=_evaluated(result))
        if best:
            self.say(f"step {step}: {_evaluated(result)} (best)")

    def say(self, message: str) -> None:
        """Write a line above the bar."""
        self._progress.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


def _written(record: Record) -> str:
    """What the attachments of each augmenter write, relative to the stream, on average."""
    by_source: dict[str, list[float]] = {}
    for key, share in record.get("written", {}).items():
        by_source.setdefault(key.partition("@")[0], []).append(share)
    means = [f"{source} {sum(shares) / len(shares):.2g}" for source, shares in by_source.items()]
    return f"  writes: {', '.join(means)}" if means else ""


def _evaluated(result: Evaluation) -> str:
    return f"eval loss {result.loss:.4f}  {result.bits_per_byte:.4f} bits/byte"
