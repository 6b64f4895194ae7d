"""`sweep`: which attachments, how many heads, which reading, which learning rate; trials run by Ray Tune."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from calm_graph.data.sources import Rows, paths_of
from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.declare.space import Choice, Space
from calm_graph.errors import CalmGraphError, DeclarationError, TrainingError
from calm_graph.interrupts import handlers_kept
from calm_graph.plan.estimate import estimate
from calm_graph.plan.graph import make_plan
from calm_graph.progress import Show
from calm_graph.train.metrics import read_metrics
from calm_graph.train.run import fit
from calm_graph.train.sweep_report import plot
from calm_graph.train.sweep_results import PLOT_FILE, SweepFolder, SweepResult, Trial, ranked
from registry import Registry
from registry import registry as default_registry
from registry.errors import RegistryError

# Ray's own notes of a sweep; nothing is resumed from them.
_RAY_NOTES = ".ray"
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What all trials share; sent to the workers once."""

    composition: Composition
    data: Rows
    eval_data: Rows
    settings: TrainSettings
    registry: Registry
    folder: Path
    num_threads: int


def sweep(
    composition: Composition,
    /,
    *,
    data: Rows,
    eval_data: Rows,
    space: Space,
    out: str | Path | None = None,
    settings: TrainSettings | None = None,
    num_trials: int | None = None,
    stop_early: bool = False,
    cpus_per_trial: int = 1,
    gpus_per_trial: float = 0,
    resume: bool = False,
    registry: Registry | None = None,
    show: Show = "auto",
) -> SweepResult:
    """Train a composition in many ways and compare what each way adds and what it gains.

    As many trials run at once as the cluster has CPUs and GPUs for; without a cluster, this machine is one. A trial
    that fails is reported and the others go on.

    Args:
        composition: What is varied; its nested compositions are not.
        data: Rows to train on.
        eval_data: Held-out rows, which give the score: bits per byte at the best evaluation.
        space: The values to try.
        out: A folder that every node sees; None is `sweeps/NAME`, after the composition.
        settings: Of every trial; `max_steps` is each one's budget.
        num_trials: A random draw of so many combinations; None tries all.
        stop_early: Stop the worse two thirds of the trials at an early evaluation, and again later (ASHA, arXiv
            1810.05934).
        cpus_per_trial: CPUs, and threads, of a trial.
        gpus_per_trial: GPUs of a trial; less than 1 shares one.
        resume: Go on with an earlier sweep in `out`: trials that failed or did not end are run, new ones are added.
        registry: Where names are looked up; None is the default registry. Its cards are sent to the workers.
        show: `none` is silent; else a line is written when a trial ends.

    Returns:
        The trials; `out` holds trials.jsonl, sweep.png and, once one has finished, best.json.

    Raises:
        TrainingError: `out` holds another sweep, or a trial asks for more than any node has.
    """
    settings = settings or TrainSettings()
    if settings.num_workers:
        raise TrainingError(
            f"settings.num_workers: got {settings.num_workers}, but each trial of a sweep is one process; trials are "
            "what runs side by side"
        )
    folder = SweepFolder(Path(out if out is not None else Path("sweeps") / composition.name).absolute())
    task = _Task(
        composition=composition,
        data=_absolute(data),
        eval_data=_absolute(eval_data),
        settings=settings,
        registry=registry or default_registry,
        folder=folder.path,
        num_threads=cpus_per_trial,
    )
    choices = space.choices(at_most=num_trials, seed=settings.seed)
    with _cluster():
        _check_resources(cpus_per_trial, gpus_per_trial)
        done = {trial.name: trial for trial in folder.open(_facts(task), resume=resume)}
        desk = _Desk(task, folder, {choice.name: choice for choice in choices}, show=show)
        waiting = [choice for choice in choices if choice.name not in done and desk.can_be_built(choice)]
        if waiting:
            _tune(task, waiting, desk, stop_early=stop_early, cpus=cpus_per_trial, gpus=gpus_per_trial)
    result = ranked(folder.path, [*done.values(), *desk.trials])
    plot(result, folder.path / PLOT_FILE)
    if result.best is not None:
        folder.write_best(result.best, composition, settings)
    return result


class _Desk(tune.Callback):  # type: ignore[misc]  # Ray's class has no types
    """Writes each trial down as soon as it ends, in the driver, so that a driver that is killed loses none."""

    def __init__(self, task: _Task, folder: SweepFolder, choices: dict[str, Choice], *, show: Show) -> None:
        self.trials: list[Trial] = []
        self._task, self._folder, self._choices, self._show = task, folder, choices, show
        self._num_parameters: dict[str, int] = {}

    def can_be_built(self, choice: Choice) -> bool:
        """Tell whether the choice makes a valid composition; one that does not is a failed trial."""
        try:
            found = make_plan(choice.composed(self._task.composition), registry=self._task.registry)
        except (DeclarationError, RegistryError) as error:
            self._end(Trial(name=choice.name, choice=choice, state="failed", error=_line(error)))
            return False
        self._num_parameters[choice.name] = estimate(found).num_trainable_parameters
        return True

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write down a trial that finished, failed with an error of ours, or was stopped."""
        found = trial.last_result
        name = trial.config["trial"]
        state = "failed" if found.get("error") else "finished" if found.get("finished") else "stopped"
        self._end(
            Trial(
                name=name,
                choice=self._choices[name],
                state=state,  # type: ignore[arg-type]
                score=found.get("score"),
                first_score=found.get("first_score"),
                num_parameters=self._num_parameters[name],
                steps=found.get("step", 0),
                seconds=round(found.get("time_total_s", 0.0), 1),
                error=found.get("error"),
            )
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write down a trial whose process was lost."""
        name = trial.config["trial"]
        lines = [line for line in Path(trial.error_file).read_text("utf-8").splitlines() if line.strip()]
        # Below Ray's heading is the message, or a traceback that ends with it.
        message = lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[1]
        self._end(Trial(name=name, choice=self._choices[name], state="failed", error=f"process lost: {message}"))

    def _end(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._folder.add(trial)
        if self._show != "none":
            score = "" if trial.score is None else f"  {trial.score:.4f} bits/byte after {trial.steps} steps"
            print(f"{trial.name}: {trial.error or trial.state}{score}", file=sys.stderr, flush=True)


def _tune(task: _Task, choices: Sequence[Choice], desk: _Desk, *, stop_early: bool, cpus: int, gpus: float) -> None:
    scheduler = None
    if stop_early:
        first = min(task.settings.eval_every_steps, task.settings.max_steps)
        scheduler = AsyncHyperBandScheduler(
            time_attr="step",
            grace_period=first,
            # At the last step there is nothing to save any more, and the run's folder is still being finished.
            max_t=max(first, task.settings.max_steps - 1),
            stop_last_trials=False,
            reduction_factor=3,
        )
    trainable = tune.with_resources(
        tune.with_parameters(_run_trial, task=task), {"cpu": cpus, **({"gpu": gpus} if gpus else {})}
    )
    notes = task.folder / _RAY_NOTES
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    try:
        # Tune prints what it is asked to do, however little it is asked to say, and leaves its signal handlers behind.
        with redirect_stdout(io.StringIO()), handlers_kept(signal.SIGINT, signal.SIGUSR1):
            tune.Tuner(
                trainable,
                param_space={
                    "trial": tune.grid_search([choice.name for choice in choices]),
                    "choices": {choice.name: choice.model_dump(mode="json") for choice in choices},
                },
                tune_config=tune.TuneConfig(metric="score", mode="min", scheduler=scheduler),
                run_config=tune.RunConfig(name="sweep", storage_path=str(notes), verbose=0, callbacks=[desk]),
            ).fit()
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _run_trial(config: dict[str, Any], *, task: _Task) -> None:
    """Train one choice in a process of its own, and report each evaluation to Tune.

    `fit` runs in a thread beside, and what it measures is read from its metrics file: a sweep needs nothing of training
    but what it leaves on disk.
    """
    torch.set_num_threads(task.num_threads)
    choice = Choice.model_validate(config["choices"][config["trial"]])
    out = task.folder / "trials" / choice.name
    errors: list[BaseException] = []

    def train() -> None:
        try:
            fit(
                choice.composed(task.composition),
                data=task.data,
                eval_data=task.eval_data,
                out=out,
                settings=choice.settings(task.settings),
                resume=True,  # begins where there is nothing to go on from
                registry=task.registry,
                show="none",
            )
        except BaseException as error:  # told by the thread that waits
            errors.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    num_reported = 0
    while True:
        ended = not thread.is_alive()
        evaluated = [record for record in read_metrics(out / "metrics.jsonl") if "eval_bits_per_byte" in record]
        for count in range(num_reported + 1, len(evaluated) + 1):
            tune.report(_measured(evaluated[:count]))
        num_reported = max(num_reported, len(evaluated))
        if ended:
            break
        time.sleep(_POLL_S)
    last = _measured(evaluated) if evaluated else {"step": 0}
    if errors:
        known = isinstance(errors[0], CalmGraphError | RegistryError)
        message = _line(errors[0]) if known else f"{type(errors[0]).__name__}: {_line(errors[0])}"
        # A score that is no number keeps a failed trial out of every comparison.
        tune.report({"score": float("inf"), **last, "error": message})
    else:
        tune.report({**last, "finished": True})


def _measured(evaluated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scores = [record["eval_bits_per_byte"] for record in evaluated]
    return {"step": evaluated[-1]["step"], "score": min(scores), "first_score": scores[0]}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _absolute(rows: Rows) -> Rows:
    """Name files so that a process in another folder finds them."""
    paths = [str(Path(path).absolute() if Path(path).exists() else path) for path in paths_of(rows)]
    return paths or rows


def _facts(task: _Task) -> dict[str, Any]:
    """What must be the same for trials to compare."""
    rows = {"data": task.data, "eval_data": task.eval_data}
    return {
        "composition": task.composition.model_dump(mode="json"),
        **{name: ", ".join(map(str, paths_of(value))) or "rows" for name, value in rows.items()},
        "settings": task.settings.model_dump(mode="json"),
    }


@contextmanager
def _cluster() -> Iterator[None]:
    """Use the cluster there is, or start one on this machine and end it afterwards."""
    if ray.is_initialized():
        yield
        return
    # Named, because without an address Ray joins the private cluster of any other program on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(cpus: int, gpus: float) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        most = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise TrainingError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, but the cluster's nodes have {most}; ask for less"
        )
