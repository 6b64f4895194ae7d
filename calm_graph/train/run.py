"""`fit`: a composition, rows and settings in; a folder that `from_pretrained` loads out."""

from __future__ import annotations

from pathlib import Path

import torch

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from calm_graph.data.sources import Rows
from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.train.folder import RunFolder
from calm_graph.train.loop import Loop, TrainResult
from calm_graph.train.progress import Show
from registry import Registry


def fit(
    composition_or_model: Composition | ComposedModel,
    /,
    *,
    data: Rows,
    eval_data: Rows | None = None,
    columns: Columns | None = None,
    out: str | Path | None = None,
    settings: TrainSettings | None = None,
    resume: bool = False,
    registry: Registry | None = None,
    show: Show = "auto",
) -> TrainResult:
    """Train the attachments of a composition; the frozen models stay as they are.

    Args:
        composition_or_model: A declaration, which is built first, or a model that is trained further in place.
        data: Rows to train on: a JSON Lines or Parquet file, a folder or glob of them, also as a URI (`s3://`,
            `gs://`); `hf:NAME:SPLIT`; a `datasets.Dataset`; a `ray.data.Dataset`; or a list.
        eval_data: Held-out rows, likewise. With them the checkpoint is that of the best evaluation, else that of the
            last step.
        columns: Key of a row -> the column of the data that holds it, as in `{"prompt": "question", "completion":
            "answer"}`; None: each is under its own name.
        out: The folder of the run; None is `runs/NAME`, after the composition.
        settings: None takes every default.
        resume: Go on from the last state in `out`; without one, begin.
        registry: Where the composition's names are looked up; None is the default registry.
        show: Progress as a bar on a terminal and lines elsewhere (`auto`), as lines (`plain`), or not at all (`none`).

    Returns:
        Where the checkpoint is, what was measured, and why the run stopped.

    Raises:
        InputError: Rows are wrong or too long.
        TrainingError: `out` holds another run, settings do not fit each other, or the loss is no number.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the state is saved, and the message says how to resume.
        DeclarationError: The composition cannot be built.
    """
    settings = settings or TrainSettings()
    if settings.patience is not None and eval_data is None:
        raise TrainingError(f"patience is {settings.patience}, but without eval_data nothing is evaluated")
    folder = RunFolder(Path(out) if out is not None else Path("runs") / _name_of(composition_or_model))
    state = folder.open(settings, resume=resume)
    device = _device(settings.device)
    model = composition_or_model
    if isinstance(model, Composition):
        # Most CPUs have no bf16 arithmetic: with SmolLM2-135M on one, a forward took 5 and a backward 26 times as long.
        dtype = torch.float32 if device.type == "cpu" and settings.precision == "fp32" else None
        model = build_model(model, registry=registry, dtype=dtype, seed=settings.seed)
    limit = _max_length(model, settings)

    def load(rows: Rows) -> Dataset:
        long_rows = settings.long_rows
        return load_dataset(rows, model.tokenizer, max_length=limit, long_rows=long_rows, columns=columns, show=show)

    dataset = load(data)
    held_out = load(eval_data) if eval_data is not None else None
    model.to(device)  # type: ignore[arg-type]
    torch.manual_seed(settings.seed)
    return Loop(model, dataset, held_out, folder, settings, show).run(state)


def _name_of(composition_or_model: Composition | ComposedModel) -> str:
    if isinstance(composition_or_model, Composition):
        return composition_or_model.name
    return composition_or_model.plan.composition.name


def _max_length(model: ComposedModel, settings: TrainSettings) -> int | None:
    context: int | None = model.plan.anchor.card.context_length
    if settings.max_length is not None and context is not None and settings.max_length > context:
        raise TrainingError(f"settings.max_length: got {settings.max_length}, but the anchor's context is {context}")
    # A sample above the budget would be a batch above the budget.
    limits = (settings.max_length or context, settings.tokens_per_batch)
    return min((limit for limit in limits if limit is not None), default=None)


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise TrainingError(f"settings.device: got {name!r}: {error}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
