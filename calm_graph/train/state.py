"""The resumable state of a run: attachments, optimiser, random numbers and place, as safetensors and JSON.

A state is written beside its place and moved there when it is complete, so a state that can be seen is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calm_graph.errors import TrainingError
from calm_graph.model.composed import ComposedModel
from calm_graph.train.step import trainable_parameters

SCHEMA_VERSION = 1
_TENSORS = "training.safetensors"
FACTS = "training.json"


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands.

    Args:
        step: Optimiser steps done.
        data_fingerprint: Of the training samples; another data set cannot be continued on.
        best_loss: Of the best evaluation so far.
        best_bits_per_byte: Of the same evaluation.
        best_step: When that was.
        first_loss: Of the evaluation before training.
        num_bad_evaluations: Evaluations in a row without a better loss.
    """

    step: int
    data_fingerprint: str
    best_loss: float | None = None
    best_bits_per_byte: float | None = None
    best_step: int | None = None
    first_loss: float | None = None
    num_bad_evaluations: int = 0


def state_folder(folder: Path, step: int) -> Path:
    """Return where the state after `step` steps is kept."""
    return folder / f"step-{step}"


def list_states(folder: Path) -> list[Path]:
    """Return the states in `folder`, oldest first."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and (path / FACTS).is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def save_state(
    folder: Path, *, model: ComposedModel, optimizer: torch.optim.Optimizer, state: TrainState, keep: int
) -> Path:
    """Write the state after `state.step` steps, then remove all but the newest `keep`.

    Args:
        folder: Holds the states of one run.
        model: A composed model.
        optimizer: Over its trainable parameters.
        state: Where the run stands.
        keep: How many states stay.

    Returns:
        The folder written; it is itself a checkpoint that `from_pretrained` loads.
    """
    target = state_folder(folder, state.step)
    scratch = folder / f".{target.name}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model.save_pretrained(scratch)
    save_file(_tensors(model, optimizer), scratch / _TENSORS)
    facts = {"schema_version": SCHEMA_VERSION, **asdict(state)}
    (scratch / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    scratch.replace(target)
    for old in list_states(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def restore_state(folder: Path, *, model: ComposedModel, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a saved state into the model, the optimiser and torch's random numbers.

    Args:
        folder: What `save_state` wrote.
        model: The same composition; its trained weights are replaced.
        optimizer: Over its trainable parameters.

    Returns:
        Where the run stood.

    Raises:
        TrainingError: The state is damaged, of a newer version, or of another composition.
        CheckpointError: The attachments' weights are.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        tensors = load_file(folder / _TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder}: cannot be read ({error}); remove it to resume from the state before") from None
    version = facts.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise TrainingError(f"{folder}: got schema_version {version}, but this version reads {SCHEMA_VERSION}")
    parameters = trainable_parameters(model)
    wanted = {f"{name}.{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")}
    found = {name for name in tensors if not name.startswith("rng.")}
    # Before the first step there are no moments yet.
    if found and found != wanted:
        raise TrainingError(
            f"{folder}: is the state of another composition: {sorted(found ^ wanted)[0]} does not match"
        )
    model.load_composition_weights(folder)
    optimizer.state.clear()
    for name, parameter in parameters.items() if found else ():
        moments = {key: tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {
            "step": tensors[f"{name}.step"],
            **{key: value.to(parameter.device) for key, value in moments.items()},
        }
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return TrainState(**facts)


def _tensors(model: ComposedModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in trainable_parameters(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    return tensors
