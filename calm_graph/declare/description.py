"""What a checkpoint says of itself: which composition, on which frozen models, and which weights belong to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calm_graph.declare.files import CHECKPOINT_FILE
from calm_graph.errors import CheckpointError
from registry.errors import WeightsError
from registry.sources import read_safetensors_header, read_safetensors_metadata

SCHEMA_VERSION = 1
WEIGHTS = "composition.safetensors"
DESCRIPTION = CHECKPOINT_FILE


def read_description(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's description.

    Raises:
        CheckpointError: It is missing, damaged or newer than this version.
    """
    file = folder / DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: there is no {DESCRIPTION}; is it the folder that training or save_pretrained wrote?"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error}); copy the checkpoint again") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{file}: it has no schema_version, so it is not the description of a composition")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{file}: schema_version {version} is newer than {SCHEMA_VERSION}, the newest that this version of "
            f"calm_graph knows; upgrade it (written by {description.get('versions', {}).get('calm_graph')})"
        )
    models = description.get("models")
    if not isinstance(description.get("composition"), dict) or not isinstance(models, dict):
        raise CheckpointError(f"{file}: damaged (it lacks its composition or models); copy the checkpoint again")
    if not all(isinstance(card, dict) for card in models.values()):
        raise CheckpointError(f"{file}: damaged (its models are not cards); copy the checkpoint again")
    return dict(description)


def check_files(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's description, and check that its weights are there, whole and its own, without reading them.

    Args:
        folder: Of the checkpoint.

    Returns:
        The description.

    Raises:
        CheckpointError: As of `read_description`; or the weights are missing, cut short or another composition's.
    """
    description = read_description(folder)
    file = folder / WEIGHTS
    try:
        read_safetensors_header(file)
        metadata = read_safetensors_metadata(file)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: there is no {WEIGHTS}; copy the checkpoint again") from None
    except (WeightsError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut short ({error}); copy the checkpoint again") from error
    if metadata.get("belongs_to") != digest(description):
        raise CheckpointError(other_composition(file))
    return description


def other_composition(file: Path) -> str:
    """Say that weights belong to another composition."""
    return f"{file}: it belongs to another composition than {DESCRIPTION} beside it describes; copy both together"


def digest(description: Mapping[str, Any]) -> str:
    """Identity of a composition and its frozen models; versions and places of files are not part of it."""
    identity = {
        "composition": description.get("composition"),
        "models": {name: card.get("fingerprint") for name, card in description.get("models", {}).items()},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
