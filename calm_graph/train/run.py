"""`fit`: a composition, rows and settings in; a folder that `from_pretrained` loads out."""

from __future__ import annotations

from pathlib import Path

import torch

from calm_graph.data.rows import Rows
from calm_graph.data.samples import Dataset, load_dataset
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
    out: str | Path | None = None,
    settings: TrainSettings | None = None,
    resume: bool = False,
    registry: Registry | None = None,
    show: Show = "auto",
) -> TrainResult:
    """Train the attachments of a composition; the frozen models stay as they are.

    Args:
        composition_or_model: A declaration, which is built first, or a model that is trained further in place.
        data: Rows to train on: a JSONL file, or a list.
        eval_data: Held-out rows. With them the checkpoint is that of the best evaluation, else that of the last step.
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
        model = build_model(
            model,
            registry=registry,
            dtype=dtype,
            seed=settings.seed,
            sharding=settings.sharding,
            placement=settings.placement,
        )
    limit = _max_length(model, settings)
    dataset = load_dataset(data, model.tokenizer, max_length=limit, long_rows=settings.long_rows)
    held_out: Dataset | None = None
    if eval_data is not None:
        held_out = load_dataset(eval_data, model.tokenizer, max_length=limit, long_rows=settings.long_rows)
    if not settings.placement:
        model.to(device)  # type: ignore[arg-type]
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable()
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
    return settings.max_length or context


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise TrainingError(f"settings.device: got {name!r}: {error}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
