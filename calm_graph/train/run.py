"""`fit`: a composition, rows and settings in; a folder that `from_pretrained` loads out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calm_graph.data.columns import Columns
from calm_graph.data.sources import Rows
from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.interrupts import stop_on_signals
from calm_graph.model.checkpoint import joined_tensors, put_tensors, trained_tensors
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.graph import make_plan
from calm_graph.progress import Show
from calm_graph.states.store import open_states
from calm_graph.train.folder import RunFolder
from calm_graph.train.job import Job, find_device
from calm_graph.train.loop import TrainResult
from calm_graph.train.progress import make_reporter
from calm_graph.train.rows import check_settings, load_rows
from calm_graph.train.workers import Workers
from registry import Registry
from registry import registry as default_registry
from registry.weights import load_tokenizer


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


def fit(
    composition_or_model: Composition | ComposedModel,
    /,
    *,
    data: Rows,
    eval_data: Rows | None = None,
    keep: Rows | None = None,
    columns: Columns | None = None,
    out: str | Path | None = None,
    settings: TrainSettings | None = None,
    resume: bool = False,
    start: str | Path | Sequence[str | Path] | None = None,
    states: str | Path | None = None,
    registry: Registry | None = None,
    show: Show = "auto",
) -> TrainResult:
    """Train the attachments of a composition; the frozen models stay as they are.

    With `settings.num_workers` at least 1 the work is done by Ray workers, each with the frozen models loaded; the
    steps are the same.

    Args:
        composition_or_model: A declaration, which is built first, or a model that is trained further in place.
        data: Rows to train on: a JSON Lines or Parquet file, a folder or glob of them, also as a URI (`s3://`,
            `gs://`); `hf:NAME:SPLIT`; several of these; a `datasets.Dataset`; a `ray.data.Dataset`; or a list of rows.
        eval_data: Held-out rows, likewise. With them the checkpoint is that of the best evaluation, else that of the
            last step.
        keep: Rows, likewise, over which the composition should go on saying what its anchor alone says, against
            forgetting: they are trained on together with the others, each of their predicted tokens by the anchor's
            own distribution.
        columns: Key of a row -> the column of the data that holds it, as in `{"prompt": "question", "completion":
            "answer"}`; None: each is under its own name.
        out: The folder of the run, shared by all nodes of a cluster, or an address in a bucket such as
            `s3://bucket/run`; None is `runs/NAME`, after the composition.
        settings: None takes every default.
        resume: Go on from the last state in `out`; without one, begin.
        start: Folder of a checkpoint of the same composition, whose attachments are trained further, as in a second
            stage; or folders of compositions of this anchor, each with some of the augmenters, that have all of this
            one's attachments together; None: fresh ones, or the model's.
        states: Folder of cached states (`precompute`): augmenters neither run nor are loaded. It must cover all rows.
        registry: Where the composition's names are looked up; None is the default registry.
        show: Progress as a bar on a terminal and lines elsewhere (`auto`), as lines (`plain`), or not at all (`none`).

    Returns:
        Where the checkpoint is, what was measured, and why the run stopped.

    Raises:
        InputError: Rows are wrong or too long.
        TrainingError: `out` holds another run or cannot be written, settings do not fit each other, the cluster has
            too few CPUs or GPUs, workers were lost too often, or the loss is no number.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the state is saved, and the message says how to resume.
        DeclarationError: The composition cannot be built.
        CheckpointError: What training should start from cannot be read, or is of another composition.
        StatesError: The cached states are not those of the composition and the rows.
    """
    settings = settings or TrainSettings()
    model = composition_or_model if isinstance(composition_or_model, ComposedModel) else None
    plan = model.plan if model else make_plan(composition_or_model, registry=registry)  # type: ignore[arg-type]
    folder = _folder(out if out is not None else Path("runs") / plan.composition.name)
    check_settings(plan, settings, evaluates=eval_data is not None, keeps=keep is not None)
    folder.check(settings, resume=resume)
    device = find_device(settings.device)
    if settings.num_workers:
        from calm_graph.train import ray_trainer

        ray_trainer.check_cluster(settings)
    if registry is None:
        registry = default_registry
    if model:
        registry = Registry([*model.checkpoints])
    starts = [] if start is None else [start] if isinstance(start, (str, Path)) else list(start)
    first = joined_tensors(starts) if starts else None
    if model and first is not None:
        put_tensors(model, first, where=", ".join(map(str, starts)))
    store = None if states is None else open_states(states, composition_or_model, registry=registry)
    dataset, held_out = load_rows(
        data,
        eval_data,
        keep,
        tokenizer=model.tokenizer if model else load_tokenizer(plan.anchor.card),
        plan=plan,
        settings=settings,
        columns=columns,
        store=store,
        show=show,
    )
    folder.open(settings)
    job = Job(
        plan=plan,
        registry=registry,
        dataset=dataset,
        eval_dataset=held_out,
        folder=folder,
        settings=settings,
        start=trained_tensors(model) if model and settings.num_workers else first,
        load_augmenters=store is None,
    )
    reporter = make_reporter(show, max_steps=settings.max_steps, log_every_steps=settings.log_every_steps)
    try:
        with stop_on_signals() as stop:
            if settings.num_workers:
                result = ray_trainer.run(job, reporter=reporter, stop=stop)
            else:
                model = model or job.build(device)
                workers = Workers(device=device)
                result = job.run(model, workers=workers, reporter=reporter, stop_requested=lambda: stop.requested)
        if result.stopped == "interrupted":
            message = _how_to_resume(result, job)
            reporter.say(message)
            raise TrainingInterrupted(message, result)
    finally:
        reporter.close()
    if model and settings.num_workers and (state := folder.last_state()):
        model.load_composition_weights(state)
    return result


def _folder(out: str | Path) -> RunFolder:
    if "://" not in str(out):
        return RunFolder(Path(out))
    from calm_graph.train.bucket import BucketFolder

    return BucketFolder.of(str(out))


def _how_to_resume(result: TrainResult, job: Job) -> str:
    return (
        f"interrupted at step {result.steps} of {job.settings.max_steps}; saved {job.folder.last_state()}. "
        "Resume with the same command and --resume, or fit(..., resume=True)"
    )
