"""The training loop in one process: steps, evaluations, states on disk, and four ways to end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from calm_graph.data.order import BatchOrder
from calm_graph.data.samples import Dataset
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.model.composed import ComposedModel
from calm_graph.train.evaluation import Evaluation, evaluate
from calm_graph.train.folder import RunFolder, write_json
from calm_graph.train.interrupts import StopRequest, stop_on_signals
from calm_graph.train.metrics import MetricsLog, read_metrics
from calm_graph.train.plots import plot_loss
from calm_graph.train.progress import Reporter, Show, make_reporter
from calm_graph.train.state import TrainState, restore_state, save_state
from calm_graph.train.step import NonFiniteError, StepResult, learning_rate_at, make_optimizer, train_step

Stopped = Literal["finished", "early", "interrupted"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Args:
        checkpoint: The folder `from_pretrained` loads: the best evaluation's weights, else the last step's.
        metrics: loss (of the last step), padding (share of all positions run) and, when there is evaluation data,
            eval_loss and eval_bits_per_byte (of the best evaluation), best_step and first_eval_loss (before training).
        steps: Optimiser steps done, those of resumed runs included.
        stopped: `finished`, `early` (no better evaluation for `patience` of them) or `interrupted`.
    """

    checkpoint: Path
    metrics: dict[str, float]
    steps: int
    stopped: Stopped


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the state is saved.

    A KeyboardInterrupt, so that a script that trains several times ends as well.

    Args:
        message: How to resume.
        result: Of the steps that were done.
    """

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(slots=True)
class Loop:
    """One run of a model on its data.

    Args:
        model: A composed model, on its device.
        dataset: What it is trained on.
        eval_dataset: Held-out samples; None trains without evaluation.
        folder: Already opened.
        settings: Of the run.
        show: How progress is shown.
    """

    model: ComposedModel
    dataset: Dataset
    eval_dataset: Dataset | None
    folder: RunFolder
    settings: TrainSettings
    show: Show = "auto"
    _state: TrainState = field(init=False)
    _log: MetricsLog = field(init=False)
    _reporter: Reporter = field(init=False)

    def run(self, state_folder: Path | None) -> TrainResult:
        """Train to the end, from the beginning or from a state.

        Args:
            state_folder: What `save_state` wrote; None starts from the beginning.

        Returns:
            The result, also written to `result.json`.

        Raises:
            TrainingError: The loss is no number, or the state does not fit the data or the model.
            TrainingInterrupted: A signal came; the state is saved.
        """
        settings = self.settings
        optimizer = make_optimizer(self.model, settings)
        order = BatchOrder(
            [len(sample.input_ids) for sample in self.dataset.samples],
            batch_size=settings.batch_size,
            seed=settings.seed,
            pool_batches=settings.pool_batches,
            order=settings.order,
        )
        self._state = self._start(state_folder, optimizer)
        self._log = MetricsLog(self.folder.path, first_step=self._state.step)
        self._reporter = make_reporter(
            self.show,
            first_step=self._state.step,
            max_steps=settings.max_steps,
            log_every_steps=settings.log_every_steps,
        )
        self.model.train()
        try:
            with stop_on_signals() as stop:
                if self._state.step == 0:
                    self._evaluate()
                stopped = self._stopped(stop)
                while stopped is None:
                    self._step(optimizer, order)
                    step = self._state.step
                    if step % settings.eval_every_steps == 0 or step == settings.max_steps:
                        self._evaluate()
                    stopped = self._stopped(stop)
                    if stopped or step % settings.checkpoint_every_steps == 0:
                        self._save(optimizer)
                return self._end(stopped)
        finally:
            self._log.close()
            self._reporter.close()

    def _start(self, state_folder: Path | None, optimizer: torch.optim.Optimizer) -> TrainState:
        fingerprint = self.dataset.fingerprint()
        if state_folder is None:
            return TrainState(step=0, data_fingerprint=fingerprint)
        state = restore_state(state_folder, model=self.model, optimizer=optimizer)
        if state.data_fingerprint != fingerprint:
            raise TrainingError(
                f"{state_folder}: was trained on other data ({state.data_fingerprint[:19]}, now {fingerprint[:19]}); "
                "resume with the same rows and tokenizer, or choose another out"
            )
        return state

    def _step(self, optimizer: torch.optim.Optimizer, order: BatchOrder) -> None:
        settings, step = self.settings, self._state.step
        indices = order.batch(step)
        pieces = cut(indices, settings.gradient_accumulation_steps)
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, settings)
        try:
            result = train_step(
                self.model,
                [self.dataset.batch(piece) for piece in pieces],
                optimizer,
                learning_rate=learning_rate,
                max_grad_norm=settings.max_grad_norm,
                precision=settings.precision,
            )
        except NonFiniteError as error:
            raise self._not_finite(error, [pieces[piece] for piece in error.pieces]) from None
        self._state = replace(self._state, step=step + 1)
        self._record(result, learning_rate, time.perf_counter() - began, epoch=step / order.batches_per_epoch)

    def _record(self, result: StepResult, learning_rate: float, seconds: float, *, epoch: float) -> None:
        record: dict[str, float] = {
            "step": self._state.step,
            "epoch": epoch,
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / seconds,
            "padding": 1 - result.num_tokens / result.num_positions,
            "step_s": seconds,
        }
        self._log.write(record)
        self._reporter.step(self._state.step, record)

    def _not_finite(self, error: NonFiniteError, pieces: Sequence[Sequence[int]]) -> TrainingError:
        rows = [self.dataset.samples[index].where for piece in pieces for index in piece]
        last = self.folder.last_state()
        kept = f"the last good state is {last}" if last else "no state was written yet"
        return TrainingError(
            f"step {self._state.step + 1}: {error}, in the rows {_some(rows)}; nothing was updated or overwritten, and "
            f"{kept}. Look at these rows, lower learning_rate, or set max_grad_norm"
        )

    def _evaluate(self) -> None:
        if self.eval_dataset is None:
            return
        settings, state = self.settings, self._state
        size = -(-settings.batch_size // settings.gradient_accumulation_steps)
        result = evaluate(self.model, self.eval_dataset, batch_size=size, precision=settings.precision)
        if not math.isfinite(result.loss):
            raise TrainingError(f"step {state.step}: the evaluation's loss is not a finite number; nothing was saved")
        best = state.best_loss is None or result.loss < state.best_loss
        self._log.write(
            {"step": state.step, "eval_loss": result.loss, "eval_bits_per_byte": result.bits_per_byte},
        )
        self._reporter.evaluation(state.step, result, best=best)
        self._state = _after(state, result, best=best)
        if best:
            self.model.save_pretrained(self.folder.path)

    def _stopped(self, stop: StopRequest) -> Stopped | None:
        if self._state.step >= self.settings.max_steps:
            return "finished"
        if self.settings.patience is not None and self._state.num_bad_evaluations >= self.settings.patience:
            return "early"
        return "interrupted" if stop.requested else None

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        save_state(
            self.folder.states,
            model=self.model,
            optimizer=optimizer,
            state=self._state,
            keep=self.settings.keep_checkpoints,
        )

    def _end(self, stopped: Stopped) -> TrainResult:
        state = self._state
        if state.best_step is None:
            self.model.save_pretrained(self.folder.path)
        self.model.eval()  # type: ignore[no-untyped-call]
        records = read_metrics(self.folder.metrics_file)
        plot_loss(records, self.folder.plot_file)
        result = TrainResult(self.folder.path, _summary(records, state), state.step, stopped)
        if stopped == "interrupted":
            message = (
                f"interrupted at step {state.step} of {self.settings.max_steps}; saved {self.folder.last_state()}. "
                "Resume with the same command and --resume, or fit(..., resume=True)"
            )
            self._reporter.say(message)
            raise TrainingInterrupted(message, result)
        write_json(
            self.folder.result_file, {"stopped": result.stopped, "steps": result.steps, "metrics": result.metrics}
        )
        return result


def cut(indices: Sequence[int], num_pieces: int) -> list[list[int]]:
    """Cut a batch into at most `num_pieces` pieces of nearly equal size."""
    size = -(-len(indices) // num_pieces)
    return [list(indices[first : first + size]) for first in range(0, len(indices), size)]


def _after(state: TrainState, result: Evaluation, *, best: bool) -> TrainState:
    if state.first_loss is None:
        state = replace(state, first_loss=result.loss)
    if not best:
        return replace(state, num_bad_evaluations=state.num_bad_evaluations + 1)
    return replace(
        state,
        best_loss=result.loss,
        best_bits_per_byte=result.bits_per_byte,
        best_step=state.step,
        num_bad_evaluations=0,
    )


def _summary(records: Sequence[dict[str, float]], state: TrainState) -> dict[str, float]:
    trained = [record for record in records if "loss" in record]
    metrics: dict[str, float] = {}
    if trained:
        metrics["loss"] = trained[-1]["loss"]
        metrics["padding"] = sum(record["padding"] for record in trained) / len(trained)
    found = {
        "eval_loss": state.best_loss,
        "eval_bits_per_byte": state.best_bits_per_byte,
        "best_step": state.best_step,
        "first_eval_loss": state.first_loss,
    }
    return metrics | {name: value for name, value in found.items() if value is not None}


def _some(rows: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(rows[:most])
    return f"{shown} and {len(rows) - most} more" if len(rows) > most else shown
