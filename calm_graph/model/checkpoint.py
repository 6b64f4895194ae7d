"""A composition on disk: only the trained parameters, and proof of which frozen models they belong to.

`composition.json` says what the composition is and which files it was made with; `composition.safetensors` holds the
trained tensors, with a digest of themselves and of the composition they belong to in its header. So each file may be
replaced on its own, atomically, and no order of two replacements can make a mixture that loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from calm_graph.declare.description import (
    DESCRIPTION,
    SCHEMA_VERSION,
    WEIGHTS,
    digest,
    other_composition,
    read_description,
)
from calm_graph.errors import CheckpointError
from calm_graph.model.model_card import model_card
from registry.weights import identity

if TYPE_CHECKING:
    from calm_graph.model.composed import ComposedModel


def save_composition(model: ComposedModel, folder: Path) -> None:
    """Write a composition; a file of it is replaced whole or not at all.

    Args:
        model: A composed model.
        folder: Where to. Files of a composition there are replaced, others are left alone.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    description = describe(model)
    tensors = trained_tensors(model)
    sizes = {key: sum(each.numel() for each in module.parameters()) for key, module in model.attachments.items()}
    with staged(folder) as stage:
        model.config.save_pretrained(stage)
        model.generation_config.save_pretrained(stage)
        model.tokenizer.save_pretrained(stage)
        (stage / "README.md").write_text(model_card(model.plan, sizes), encoding="utf-8")
        (stage / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        metadata = {"format": "pt", "sha256": _tensor_digest(tensors), "belongs_to": digest(description)}
        save_file(tensors, stage / WEIGHTS, metadata=metadata)
        _sort_metadata(stage / WEIGHTS)


def _sort_metadata(file: Path) -> None:
    """Put metadata in order, in place: safetensors writes them in any order, and the same should be the same file."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        stream.seek(8)
        stream.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def describe(model: ComposedModel) -> dict[str, Any]:
    """What a checkpoint says of itself: the declaration, the frozen models with fingerprints, the versions."""
    cards = {card.name: card for card in (*(run.card for run in model.plan.runs), *model.checkpoints)}
    return {
        "schema_version": SCHEMA_VERSION,
        "composition": model.plan.composition.model_dump(mode="json"),
        "models": {
            name: card.model_dump(mode="json") | {"fingerprint": identity(card)} for name, card in sorted(cards.items())
        },
        "versions": {
            "calm_graph": _own_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def trained_tensors(model: ComposedModel) -> dict[str, torch.Tensor]:
    """The trained parameters by name, without those that belong to the checkpoint of a nested composition."""
    return {
        f"{planned.key}.{name}": tensor.detach().cpu().contiguous()
        for planned in model.plan.attachments
        if planned.trainable
        for name, tensor in model.attachments[planned.key].state_dict().items()
    }


def read_tensors(folder: Path, description: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors, if they are the ones that were written and belong to its description.

    Raises:
        CheckpointError: The file is missing, cut short, changed, or belongs to another composition.
    """
    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: there is no {WEIGHTS}; copy the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut short ({error}); copy the checkpoint again") from error
    if _tensor_digest(tensors) != metadata.get("sha256"):
        raise CheckpointError(f"{file}: its content has changed since it was written; copy the checkpoint again")
    if digest(description) != metadata.get("belongs_to"):
        raise CheckpointError(other_composition(file))
    return tensors


def joined_tensors(folders: Sequence[str | Path]) -> dict[str, torch.Tensor]:
    """Read the trained tensors of checkpoints that have no attachment in common.

    Args:
        folders: The checkpoints.

    Returns:
        All their tensors.

    Raises:
        CheckpointError: One cannot be read, or two have the same attachment.
    """
    tensors: dict[str, torch.Tensor] = {}
    for folder in map(Path, folders):
        found = read_tensors(folder, read_description(folder))
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(
                f"{folder}: has {twice[0]}, which one before it has too; of several checkpoints each must have other "
                "attachments"
            )
        tensors |= found
    return tensors


def put_tensors(model: ComposedModel, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Put tensors into the trainable attachments: all, or none and an error.

    Args:
        model: The composed model.
        tensors: By name; exactly those of `trained_tensors`.
        where: What they are, for the error.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    own = {
        f"{planned.key}.{name}": tensor
        for planned in model.plan.attachments
        if planned.trainable
        for name, tensor in model.attachments[planned.key].state_dict().items()
    }
    copy_exactly(own, tensors, where=where)


def copy_exactly(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy tensors over those of the same name, after checking that names and shapes are the same.

    Raises:
        CheckpointError: They are not; nothing is copied then.
    """
    problems = [f"it lacks {name}" for name in own if name not in tensors]
    problems += [f"it has {name}, which the composition does not" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, but the composition needs {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{where}: does not fit this composition: {'; '.join(problems[:5])}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, whose files then appear in `folder`: none if anything goes wrong before.

    Args:
        folder: Where the files should be; what else is in it is left alone.

    Yields:
        An empty folder on the same disk.

    Raises:
        CheckpointError: Something went wrong inside the `with`, or the folder cannot be written.
    """
    folder = folder.absolute()
    stage: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Inside an existing folder, which may be a mounted volume: nothing can be moved into that from beside it.
        beside = folder.parent if not folder.exists() else folder
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=beside))
        yield stage
        files = [file for file in stage.rglob("*") if file.is_file()]
        for file in files:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            file.chmod(0o666 & ~_umask())
        # mkdtemp and safetensors write for the owner only; a checkpoint is as readable as anything else the user makes.
        stage.chmod(0o777 & ~_umask())
        if beside != folder:
            stage.rename(folder)
        else:
            # The weights go last: until then they belong to the description that was there.
            for file in sorted(files, key=lambda file: file.name == WEIGHTS):
                target = folder / file.relative_to(stage)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except Exception as error:  # the writers of tokenizers and safetensors raise classes of their own
        raise CheckpointError(f"{folder}: cannot be written ({error}); what was there is unchanged") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _own_version() -> str:
    from importlib.metadata import version

    return version("calm-graph")
