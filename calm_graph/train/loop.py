"""The training loop, the same in one process and in each of many: steps, evaluations, states on disk, its end."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from calm_graph.data.order import BatchOrder, share
from calm_graph.data.samples import Dataset
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.model.composed import ComposedModel
from calm_graph.model.writes import Writes, measured_writes
from calm_graph.train.evaluation import Evaluation, evaluate
from calm_graph.train.folder import RunFolder, write_json
from calm_graph.train.metrics import MetricsLog, Record, read_metrics
from calm_graph.train.plots import plot_loss, plot_writes
from calm_graph.train.progress import Reporter
from calm_graph.train.state import TrainState, restore_state, save_state
from calm_graph.train.step import NonFiniteError, StepResult, learning_rate_at, make_optimizer, train_step
from calm_graph.train.workers import ALONE, Workers

Stopped = Literal["finished", "early", "interrupted"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Args:
        checkpoint: The folder, or the address in a bucket, that `from_pretrained` loads: the best evaluation's weights,
            else the last step's.
        metrics: loss (of the last step), padding (share of all positions run) and, when there is evaluation data,
            eval_loss and eval_bits_per_byte (of the best evaluation), best_step and first_eval_loss (before training).
        steps: Optimiser steps done, those of resumed runs included.
        stopped: `finished`, `early` (no better evaluation for `patience` of them) or `interrupted`.
    """

    checkpoint: str
    metrics: dict[str, float]
    steps: int
    stopped: Stopped


class DivergedError(TrainingError):
    """The loss is no number: all workers stop at the same step, and trying the step again would not help."""


@dataclass(slots=True)
class Loop:
    """One run of a model on its data.

    Args:
        model: A composed model, on its device.
        dataset: What it is trained on.
        eval_dataset: Held-out samples; None trains without evaluation.
        folder: Already opened.
        settings: Of the run.
        reporter: Hears of every step, in the first worker.
        stop_requested: Asked at every step whether to save and stop.
        workers: Who trains; each runs its own loop.
    """

    model: ComposedModel
    dataset: Dataset
    eval_dataset: Dataset | None
    folder: RunFolder
    settings: TrainSettings
    reporter: Reporter
    stop_requested: Callable[[], bool]
    workers: Workers = ALONE
    _state: TrainState = field(init=False)
    _log: MetricsLog | None = field(init=False, default=None)
    _stopping: bool = field(init=False, default=False)

    def run(self, state_folder: Path | None) -> TrainResult:
        """Train to the end, from the beginning or from a state.

        Args:
            state_folder: What `save_state` wrote; None starts from the beginning.

        Returns:
            The result. The first worker also writes it to `result.json`, unless the run was interrupted.

        Raises:
            DivergedError: The loss is no number.
            TrainingError: The state does not fit the data or the model, or the workers see different states.
        """
        settings, first = self.settings, self.workers.is_first
        optimizer = make_optimizer(self.model, settings)
        order = BatchOrder(
            self.dataset.lengths,
            batch_size=settings.batch_size,
            seed=settings.seed,
            pool_batches=settings.pool_batches,
            tokens_per_batch=settings.tokens_per_batch,
            order=settings.order,
        )
        self._state = self._start(state_folder, optimizer)
        self._check_same_start()
        replica = self.workers.replicate(self.model)
        if first:
            self._log = MetricsLog(self.folder.path, first_step=self._state.step)
            self.reporter.start(self._state.step)
        self.model.train()
        try:
            if self._state.step == 0:
                self._evaluate()
            while (stopped := self._stopped()) is None:
                self._step(replica, optimizer, order)
                step = self._state.step
                if step % settings.eval_every_steps == 0 or step == settings.max_steps:
                    self._evaluate()
                if first and (self._stopped() or step % settings.checkpoint_every_steps == 0):
                    self._save(optimizer)
            return self._end(stopped)
        finally:
            if self._log is not None:
                self._log.close()

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

    def _check_same_start(self) -> None:
        steps = [int(values[0]) for values in self.workers.gather([self._state.step])]
        if len(set(steps)) > 1:
            raise TrainingError(
                f"{self.folder.name}: workers 0..{len(steps) - 1} find the states of the steps {steps} there; "
                "out must be one folder that all nodes share"
            )

    def _step(self, replica: nn.Module, optimizer: torch.optim.Optimizer, order: BatchOrder) -> None:
        settings, step, workers = self.settings, self._state.step, self.workers
        indices = order.batch(step)
        # The others wait for this worker's gradients, so it runs something even when there is nothing for it.
        own = share(indices, workers.rank, workers.count)
        pieces = cut(own or indices[:1], self._num_pieces(indices))
        num_items = self.dataset.num_items(indices) / workers.count
        began = time.perf_counter()
        learning_rate = learning_rate_at(step, settings)
        watched = (step + 1) % settings.log_every_steps == 0 and workers.is_first
        try:
            with measured_writes() if watched else nullcontext(Writes()) as writes:
                result = train_step(
                    replica,
                    [self.dataset.batch(piece) for piece in pieces],
                    optimizer,
                    learning_rate=learning_rate,
                    max_grad_norm=settings.max_grad_norm,
                    precision=settings.precision,
                    told_layer=settings.told_layer,
                    num_items_in_batch=num_items if own else math.inf,
                    workers=workers,
                    stop_requested=self.stop_requested,
                )
        except NonFiniteError as error:
            raise self._not_finite(error, indices) from None
        self._state = replace(self._state, step=step + 1)
        self._stopping = result.stop
        self._record(result, learning_rate, time.perf_counter() - began, order.epoch(step), writes)

    def _record(self, result: StepResult, learning_rate: float, seconds: float, epoch: float, writes: Writes) -> None:
        if self._log is None:
            return
        record: Record = {
            "step": self._state.step,
            "epoch": epoch,
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": result.num_tokens / seconds,
            "padding": 1 - result.num_tokens / result.num_positions,
            "step_s": seconds,
        }
        if writes.squares:
            record["written"] = writes.shares()
        self._log.write(record)
        self.reporter.step(self._state.step, record)

    def _num_pieces(self, indices: Sequence[int]) -> int:
        """As many for every worker: those that share out a frozen model must call it equally often."""
        return max(1, min(self.settings.gradient_accumulation_steps, len(indices) // self.workers.count))

    def _not_finite(self, error: NonFiniteError, indices: Sequence[int]) -> DivergedError:
        culprits = indices
        if error.pieces:
            num_pieces = self._num_pieces(indices)
            cuts = {rank: cut(share(indices, rank, self.workers.count), num_pieces) for rank, _ in error.pieces}
            culprits = [index for rank, piece in error.pieces for index in cuts[rank][piece]]
        rows = [self.dataset.where(index) for index in culprits]
        last = self.folder.last_state()
        kept = f"the last good state is {last}" if last else "no state was written yet"
        return DivergedError(
            f"step {self._state.step + 1}: {error}, in the rows {_some(rows)}; nothing was updated or overwritten, and "
            f"{kept}. Look at these rows, lower learning_rate, or set max_grad_norm"
        )

    def _evaluate(self) -> None:
        if self.eval_dataset is None:
            return
        settings, state = self.settings, self._state
        # As much at once as a training step: each worker's share, in its pieces.
        num_parts = settings.gradient_accumulation_steps * self.workers.count
        budget = settings.tokens_per_batch
        result = evaluate(
            self.model,
            self.eval_dataset,
            batch_size=-(-settings.batch_size // num_parts),
            tokens_per_batch=budget and -(-budget // num_parts),
            precision=settings.precision,
            workers=self.workers,
        )
        if not math.isfinite(result.loss):
            raise DivergedError(f"step {state.step}: the evaluation's loss is not a finite number; nothing was saved")
        best = state.best_loss is None or result.loss < state.best_loss
        self._state = _after(state, result, best=best)
        if self._log is None:
            return
        self._log.write(
            {"step": state.step, "eval_loss": result.loss, "eval_bits_per_byte": result.bits_per_byte},
        )
        self.reporter.evaluation(state.step, result, best=best)
        if best:
            self.model.save_pretrained(self.folder.path)

    def _stopped(self) -> Stopped | None:
        if self._state.step >= self.settings.max_steps:
            return "finished"
        if self.settings.patience is not None and self._state.num_bad_evaluations >= self.settings.patience:
            return "early"
        return "interrupted" if self._stopping else None

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        save_state(
            self.folder.states,
            model=self.model,
            optimizer=optimizer,
            state=self._state,
            keep=self.settings.keep_checkpoints,
        )
        self.folder.publish()

    def _measure(self) -> str:
        if self.settings.told_layer is not None:
            return "difference of states"
        return "nats per token; of kept rows, from the anchor" if self.dataset.kept.any() else "nats per token"

    def _end(self, stopped: Stopped) -> TrainResult:
        state = self._state
        self.model.eval()  # type: ignore[no-untyped-call]
        if not self.workers.is_first:
            return TrainResult(self.folder.name, {}, state.step, stopped)
        if state.best_step is None:
            self.model.save_pretrained(self.folder.path)
        records = read_metrics(self.folder.metrics_file)
        plot_loss(records, self.folder.plot_file, measure=self._measure())
        plot_writes(records, self.model.plan.attachments, self.folder.writes_plot_file)
        result = TrainResult(self.folder.name, _summary(records, state), state.step, stopped)
        if stopped != "interrupted":
            write_json(
                self.folder.result_file, {"stopped": result.stopped, "steps": result.steps, "metrics": result.metrics}
            )
        self.folder.publish()
        return result


def cut(indices: Sequence[int], num_pieces: int) -> list[list[int]]:
    """Cut a batch into `num_pieces` pieces of nearly equal size, or into single samples if it has fewer."""
    count = min(num_pieces, len(indices))
    ends = [len(indices) * piece // count for piece in range(count + 1)]
    return [list(indices[first:end]) for first, end in itertools.pairwise(ends)]


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


def _summary(records: Sequence[Record], state: TrainState) -> dict[str, float]:
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
