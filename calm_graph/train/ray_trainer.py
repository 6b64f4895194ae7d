"""A run on Ray Train: workers that are started, watched and replaced, all around the same loop.

States are written by the loop itself, into the run's folder, and not through `ray.train.report`: Ray keeps track of a
reported checkpoint only after its controller has polled for it, and loses what a dying worker reported last.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import CalmGraphError, TrainingError
from calm_graph.interrupts import StopRequest, stop_on_signals
from calm_graph.train.evaluation import Evaluation
from calm_graph.train.job import Job
from calm_graph.train.loop import DivergedError, TrainResult
from calm_graph.train.metrics import Record
from calm_graph.train.progress import Reporter
from calm_graph.train.workers import Workers

_CONTROLLER_FAILURES = 3
_POLL_S = 0.25
# Ray's own notes of a run; nothing is resumed from them.
_RAY_NOTES = ".ray"
# A worker on another node finds the models where the driver does, if they are told apart by this variable.
_FORWARDED = ("CALM_GRAPH_MODELS",)


def run(job: Job, *, reporter: Reporter, stop: StopRequest) -> TrainResult:
    """Train a job on Ray workers: of the cluster that this process or RAY_ADDRESS is in, else of one started here.

    Args:
        job: What is trained.
        reporter: Hears of every step, in this process.
        stop: Once requested, the workers save and stop.

    Returns:
        How it ended.

    Raises:
        TrainingError: The workers could not be started, were lost too often, or the loss is no number.
    """
    # Signals are asked for again, because ray.init takes SIGTERM for itself.
    with _cluster(job.settings), stop_on_signals(stop):
        _check_resources(job.settings, _nodes())
        desk = ray.remote(num_cpus=0, max_restarts=-1)(_Desk).remote()
        trainer = _trainer(job, desk)
        outcome: list[TrainResult | BaseException] = []
        fitting = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True)
        fitting.start()
        while fitting.is_alive():
            fitting.join(_POLL_S)
            _replay(desk, reporter)
            if stop.requested:
                desk.stop.remote()
        _replay(desk, reporter)
        job.folder.remove(_RAY_NOTES)
        result = outcome[0]
        if isinstance(result, BaseException):
            raise TrainingError(_explained(result, job)) from result
        job.folder.fetch()
        return replace(result, checkpoint=job.folder.name)


def check_cluster(settings: TrainSettings) -> None:
    """Refuse what this machine, or the cluster it belongs to, does not have, before anything is loaded.

    Raises:
        TrainingError: More workers or GPUs are asked for than there are.
    """
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        ray.init(**_quiet())
    if ray.is_initialized():
        _check_resources(settings, _nodes())
    else:
        _check_resources(settings, [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}])


def _quiet() -> dict[str, Any]:
    return {"configure_logging": False, "log_to_driver": False}


@contextmanager
def _cluster(settings: TrainSettings) -> Iterator[None]:
    """Stay in the cluster that was joined, or start one of this machine and end it afterwards."""
    if ray.is_initialized():
        yield
        return
    _, most = _bounds(settings)
    ray.init(
        address="local",
        # Workers may outnumber the cores of a laptop; `check_cluster` allows it only if asked to.
        num_cpus=max(os.cpu_count() or 1, most * (settings.cpus_per_worker or 0)),
        include_dashboard=False,
        # Ray runs workers at nice 15, behind everything else on the machine; a plain run is not, and nor are these.
        _system_config={"worker_niceness": 0},
        **_quiet(),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _bounds(settings: TrainSettings) -> tuple[int, int]:
    workers = settings.num_workers
    return (workers, workers) if isinstance(workers, int) else workers


def _check_resources(settings: TrainSettings, nodes: Sequence[dict[str, float]]) -> None:
    if settings.wait_for_resources_s:
        return
    fewest, _ = _bounds(settings)
    resource, per_worker = ("GPU", 1) if settings.use_gpu else ("CPU", settings.cpus_per_worker or 1)
    places = sum(int(node.get(resource, 0) // per_worker) for node in nodes)
    if places < fewest:
        total = sum(node.get(resource, 0) for node in nodes)
        raise TrainingError(
            f"settings.num_workers: got {settings.num_workers}, but the cluster has {total:g} {resource}s on "
            f"{len(nodes)} nodes, room for {places} workers of {per_worker} each; ask for fewer, add nodes, or set "
            "wait_for_resources_s if it grows by itself"
        )


def cpus_per_worker(settings: TrainSettings, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many CPUs each worker gets: as many as let all workers find a place.

    Args:
        settings: Of the run.
        nodes: Resources of each node.
    """
    if settings.cpus_per_worker:
        return settings.cpus_per_worker
    _, most = _bounds(settings)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    fitting = [each for each in range(1, max(cpus, default=1) + 1) if sum(count // each for count in cpus) >= most]
    return max(fitting, default=1)


def _trainer(job: Job, desk: Any) -> TorchTrainer:
    settings = job.settings
    os.environ.update(
        {
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # Cards may name folders relative to where the driver runs.
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(settings.hang_timeout_s),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(max(settings.wait_for_resources_s, 60.0)),
        }
    )
    job.folder.remove(_RAY_NOTES)
    return TorchTrainer(
        _work,
        # In the object store once, not in a message to each worker.
        train_loop_config={"job": [ray.put(replace(job, folder=job.folder.absolute()))], "desk": desk},
        torch_config=TorchConfig(timeout_s=max(1, round(settings.hang_timeout_s))),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={
                "CPU": cpus_per_worker(settings, _nodes()),
                **({"GPU": 1} if settings.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=f"{job.folder.shared}/{_RAY_NOTES}",
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=_CONTROLLER_FAILURES
            ),
            worker_runtime_env={"env_vars": {name: os.environ[name] for name in _FORWARDED if name in os.environ}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _fit(trainer: TorchTrainer, outcome: list[TrainResult | BaseException]) -> None:
    try:
        outcome.append(trainer.fit().return_value)
    except BaseException as error:  # handed to the thread that waits for it
        outcome.append(error)


def _work(config: dict[str, Any]) -> TrainResult | DivergedError:
    """What each worker runs."""
    context = get_context()
    job: Job = ray.get(config["job"][0])
    job = replace(job, folder=job.folder.on_this_node())
    workers = Workers(rank=context.get_world_rank(), count=context.get_world_size(), device=get_device())
    teller = _Teller(config["desk"])
    try:
        return job.run(
            job.build(workers.device), workers=workers, reporter=teller, stop_requested=teller.stop_requested
        )
    except DivergedError as error:
        # Returned, because all workers stop at it and Ray would only try the same step again.
        return error
    finally:
        teller.close()


def _explained(error: BaseException, job: Job) -> str:
    """Say what ended the run, from within what Ray says about it."""
    if isinstance(error, DivergedError):
        return str(error)
    state = job.folder.last_state()
    kept = f"the last state is {state}; go on with resume (--resume)" if state else "no state was written yet"
    failures = getattr(error, "worker_failures", None)
    if isinstance(error, TrainingFailedError) and failures:
        # The worker that went wrong first takes the others down with it.
        rank, cause = min(failures.items(), key=lambda item: not isinstance(_cause(item[1]), CalmGraphError))
        return (
            f"worker {rank} failed, after {job.settings.max_failures} replacements: "
            f"{type(_cause(cause)).__name__}: {_first_lines(_cause(cause))}; {kept}"
        )
    return f"Ray ended the run: {type(error).__name__}: {error}; {kept}"


def _first_lines(error: BaseException) -> str:
    """Ray explains a lost worker in many lines; which worker it was, and that its process ended, is in the first."""
    if isinstance(error, CalmGraphError):
        return str(error)
    return str(error).partition("\n")[0].rstrip(".") + " (its process was killed, ran out of memory, or hung)" * (
        "health check" in str(error)
    )


def _cause(error: BaseException) -> BaseException:
    """The innermost error that was raised, below those that say where."""
    for inner in (getattr(error, "cause", None), getattr(error, "_base_exc", None), error.__cause__):
        if isinstance(inner, BaseException) and inner is not error:
            return _cause(inner)
    return error


class _Desk:
    """An actor between the workers and the driver: progress one way, the wish to stop the other.

    Not `ray.train.report`, which makes a step wait until the controller has taken the report before it.
    """

    def __init__(self) -> None:
        self._events: list[tuple[str, tuple[Any, ...]]] = []
        self._stop = False

    def tell(self, events: list[tuple[str, tuple[Any, ...]]]) -> bool:
        """Take events in, and return whether to stop."""
        self._events += events
        return self._stop

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Hand all events out."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Ask the workers to stop."""
        self._stop = True


class _Teller:
    """The reporter of a worker: sends what it hears to the desk, a few times a second, and never waits for it.

    Args:
        desk: The actor.
    """

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._events: list[tuple[str, tuple[Any, ...]]] = []
        self._sent_at_s = 0.0
        self._answer: Any = None
        self._stop = False

    def start(self, step: int) -> None:
        """Send it."""
        self._events.append(("start", (step,)))

    def step(self, step: int, record: Record) -> None:
        """Send it."""
        self._events.append(("step", (step, record)))

    def evaluation(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Send it."""
        self._events.append(("evaluation", (step, result, best)))

    def say(self, message: str) -> None:
        """Send it."""
        self._events.append(("say", (message,)))

    def close(self) -> None:
        """Send what is left, and wait until it has arrived."""
        with suppress(RayError):
            ray.get(self._desk.tell.remote(self._events))

    def stop_requested(self) -> bool:
        """Whether the driver has asked to stop, as far as is known by now."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            # Progress is a courtesy: a desk that was lost is started again, and training does not care.
            with suppress(RayError):
                self._stop = ray.get(self._answer)
            self._answer = None
        if self._answer is None and time.monotonic() > self._sent_at_s + _POLL_S:
            self._answer, self._events = self._desk.tell.remote(self._events), []
            self._sent_at_s = time.monotonic()
        return self._stop


def _replay(desk: Any, reporter: Reporter) -> None:
    events: list[tuple[str, tuple[Any, ...]]] = []
    with suppress(RayError):
        events = ray.get(desk.take.remote())
    for kind, values in events:
        if kind == "evaluation":
            step, result, best = values
            reporter.evaluation(step, result, best=best)
        else:
            getattr(reporter, kind)(*values)
