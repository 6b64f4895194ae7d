"""What `data=` may be: files, folders and object stores, Hugging Face and Ray data sets, or rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from calm_graph.data import huggingface
from calm_graph.data.columns import Columns, as_row, check_columns
from calm_graph.data.files import Read, find_files
from calm_graph.data.rows import Place, Source
from calm_graph.errors import InputError


class RayDataset(Protocol):
    """What is used of a `ray.data.Dataset`; only `ray_data` imports ray."""

    def map_batches(self, fn: Any, /, **options: Any) -> Any:
        """Apply a function to batches of rows."""


Rows = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]] | RayDataset
"""Where rows come from: a path or URI of a JSON Lines or Parquet file, of a folder of them, or a glob; `hf:NAME:SPLIT`;
several of these; a `datasets.Dataset` or `IterableDataset`; a `ray.data.Dataset`; or rows in memory."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Rows that are ready to be read.

    Args:
        name: What errors call them.
        num_rows: How many there are; None where only reading them tells.
        rows: Each with its place, under the keys of a row; read once.
    """

    name: str
    num_rows: int | None
    rows: Read


def open_rows(data: Rows, columns: Columns | None = None) -> RowReader:
    """Open rows; files are found now and read as the rows are taken.

    Args:
        data: All but a `ray.data.Dataset`, whose rows are tokenised where they are.
        columns: Where the keys of a row are; None: each under its own name.

    Returns:
        The rows.

    Raises:
        InputError: There is nothing of that name, or nothing that could be rows.
    """
    check_columns(columns)
    if isinstance(data, str) and data.startswith(huggingface.PREFIX):
        return _of_dataset(huggingface.open_named(data), name=data, columns=columns)
    if isinstance(data, str | Path):
        files = find_files(data)
        counts = [file.num_rows() for file in files]
        num_rows = sum(count for count in counts if count is not None) if None not in counts else None
        rows = (row for file in files for row in file.rows(columns))
        return RowReader(str(data), num_rows, _renamed(rows, columns))
    if paths := paths_of(data):
        parts = [open_rows(path, columns) for path in paths]
        known = [part.num_rows for part in parts if part.num_rows is not None]
        num_rows = sum(known) if len(known) == len(parts) else None
        return RowReader(", ".join(part.name for part in parts), num_rows, chain.from_iterable(p.rows for p in parts))
    if package_of(data) == "datasets":
        return _of_dataset(data, name="data", columns=columns)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise InputError(
            f"data: got a {type(data).__name__}, but a path, a URI, hf:NAME, a list of rows, a datasets.Dataset or a "
            "ray.data.Dataset is needed"
        )
    source = Source("data", "rows")
    num_rows = len(data) if isinstance(data, Sized) else None
    return RowReader("data", num_rows, _renamed(((Place(source, i), row) for i, row in enumerate(data)), columns))


def paths_of(data: Rows) -> list[str | Path]:
    """Return the paths and names that rows come from; none where they come from something else."""
    if isinstance(data, str | Path):
        return [data]
    listed = list(data) if isinstance(data, list | tuple) else []
    return listed if all(isinstance(each, str | Path) for each in listed) else []


def package_of(data: object) -> str:
    """Return the package that a type comes from, without importing it."""
    return type(data).__module__.partition(".")[0]


def _of_dataset(dataset: Any, *, name: str, columns: Columns | None) -> RowReader:
    if isinstance(dataset, Mapping):
        splits = ", ".join(repr(split) for split in dataset)
        raise InputError(f"{name}: got a {type(dataset).__name__} with the splits {splits}; give one of them")
    num_rows = len(dataset) if isinstance(dataset, Sized) else None
    return RowReader(name, num_rows, _renamed(huggingface.rows_of(dataset, name=name, columns=columns), columns))


def _renamed(rows: Iterator[tuple[Place, object]], columns: Columns | None) -> Read:
    return ((place, as_row(row, columns)) for place, row in rows)
