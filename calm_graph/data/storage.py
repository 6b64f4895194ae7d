"""A data set in a folder: an array per file, mapped into memory and not read until it is used."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calm_graph.data.rows import Source
from calm_graph.data.samples import Dataset
from calm_graph.errors import InputError

_FACTS_FILE = "dataset.json"
_COUNTS = ("pad_token_id", "num_skipped", "num_cut")
_OTHERS = (*_COUNTS, "sources", "augmenter_inputs", "states_of", "scales_of")
_COLUMNS = tuple(field.name for field in fields(Dataset) if field.name not in _OTHERS)


def save_dataset(dataset: Dataset, folder: str | Path) -> None:
    """Write a data set, all of it or nothing.

    Args:
        dataset: Of any size.
        folder: Must not exist yet.

    Raises:
        InputError: The folder exists, or cannot be written.
    """
    folder = Path(folder)
    scratch = folder.with_name(f".{folder.name}.tmp")
    inputs = [(name, key) for name, arrays in dataset.augmenter_inputs.items() for key in arrays]
    try:
        if folder.exists():
            raise InputError(f"{folder}: exists already; a data set is not overwritten")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for name in _COLUMNS:
            np.save(scratch / f"{name}.npy", getattr(dataset, name), allow_pickle=False)
        for number, (name, key) in enumerate(inputs):
            np.save(scratch / f"augmenter_inputs.{number}.npy", dataset.augmenter_inputs[name][key], allow_pickle=False)
        counts = {name: getattr(dataset, name) for name in _COUNTS}
        facts = counts | {"sources": dataset.sources, "augmenter_inputs": inputs}
        (scratch / _FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        os.replace(scratch, folder)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise InputError(f"{folder}: cannot be written ({error})") from None


def open_dataset(folder: str | Path) -> Dataset:
    """Open what `save_dataset` wrote; samples are read from the disk as they are asked for.

    Args:
        folder: Of one data set.

    Returns:
        The data set, read-only.

    Raises:
        InputError: The folder holds none, or it is damaged.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / _FACTS_FILE).read_text())
        inputs: dict[str, dict[str, NDArray[Any]]] = {}
        for number, (name, key) in enumerate(facts["augmenter_inputs"]):
            inputs.setdefault(name, {})[key] = _mapped(folder / f"augmenter_inputs.{number}.npy")
        stored: dict[str, Any] = {name: _mapped(folder / f"{name}.npy") for name in _COLUMNS}
        stored |= {name: facts[name] for name in _COUNTS}
        return Dataset(
            **stored,
            sources=tuple(Source(*source) for source in facts["sources"]),
            augmenter_inputs=inputs,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: holds no data set that can be read ({error})") from None


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
