"""Rows of Hugging Face data sets, given as objects or by name."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from calm_graph.data.columns import Columns, columns_to_read
from calm_graph.data.files import Read, check_types
from calm_graph.data.rows import Place, Source
from calm_graph.errors import InputError

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"


def open_named(spec: str) -> datasets.Dataset:
    """Load a data set by its name on the hub, or from a folder.

    Args:
        spec: `hf:NAME` or `hf:NAME:SPLIT`; without a split, `train`.

    Returns:
        The split.

    Raises:
        InputError: There is no name, the package `datasets` is missing, or there is no such data set or split.
    """
    name, _, split = spec.removeprefix(PREFIX).partition(":")
    if not name:
        raise InputError(f"{spec!r}: has no name; hf:NAME or hf:NAME:SPLIT is needed")
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"{spec}: needs the package datasets; pip install 'calm-graph[datasets]'")
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split or "train")
    # Its loaders raise whatever their readers and the network do.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{spec}: cannot be loaded ({type(error).__name__}: {reason})") from None
    assert isinstance(dataset, datasets.Dataset)
    return dataset


def rows_of(dataset: datasets.Dataset | datasets.IterableDataset, *, name: str, columns: Columns | None) -> Read:
    """Read the rows of a data set.

    Args:
        dataset: One split; an IterableDataset is read once, from its beginning.
        name: What errors call it.
        columns: Where the keys of a row are; None: each in the column of its name.

    Yields:
        Each row under the names it has in the data set.

    Raises:
        InputError: Its columns make no row.
    """
    if dataset.column_names is not None:
        names = columns_to_read(dataset.column_names, columns=columns, where=name)
        if dataset.features is not None:
            check_types(dataset.features.arrow_schema, columns=columns, where=name)
        # Other columns may be images or sounds, which are slow to decode.
        dataset = dataset.select_columns(names)
    source = Source(name, "rows")
    for number, row in enumerate(dataset):
        yield Place(source, number), row
