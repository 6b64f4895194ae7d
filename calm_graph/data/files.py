"""Rows in files: JSON Lines and Parquet, here or in an object store, one file, a folder of them or a glob."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs, parquet

from calm_graph.data.columns import Columns, columns_to_read
from calm_graph.data.rows import ROW, Place, Source
from calm_graph.errors import InputError

_LINES = (".jsonl", ".ndjson")
_COMPRESSED = ("", ".gz", ".bz2", ".zst")
_ENDINGS = (*(lines + packed for lines in _LINES for packed in _COMPRESSED), ".parquet")
_ROWS_AT_ONCE = 1024
_PATIENCE_S = 30

Read = Iterator[tuple[Place, object]]
"""Each row with its place; a row that could not be read is the `InputError` that says why."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows.

    Args:
        name: As the user would write it.
        filesystem: Where it lies.
        path: There.
    """

    name: str
    filesystem: fs.FileSystem
    path: str

    def num_rows(self) -> int | None:
        """Return how many rows the file has, if that is known without much reading.

        Raises:
            InputError: It cannot be read.
        """
        # In an object store, asking every file takes a while.
        if not self.name.endswith(".parquet") or not isinstance(self.filesystem, fs.LocalFileSystem):
            return None
        try:
            with parquet.ParquetFile(self.filesystem.open_input_file(self.path)) as table:
                num_rows: int = table.metadata.num_rows
                return num_rows
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None

    def rows(self, columns: Columns | None) -> Read:
        """Read the rows, a piece of the file at a time.

        Args:
            columns: Where the keys of a row are; None: each under its name.

        Yields:
            Each row under the names it has in the file.

        Raises:
            InputError: The file cannot be read, or its columns make no row.
        """
        try:
            yield from self._table_rows(columns) if self.name.endswith(".parquet") else self._lines()
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None

    def _lines(self) -> Read:
        source = Source(self.name, "lines")
        with io.BufferedReader(self.filesystem.open_input_stream(self.path)) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Place(source, number), _parse(line)

    def _table_rows(self, columns: Columns | None) -> Read:
        source = Source(self.name, "rows")
        with parquet.ParquetFile(self.filesystem.open_input_file(self.path)) as table:
            names = columns_to_read(table.schema_arrow.names, columns=columns, where=self.name)
            check_types(table.schema_arrow, columns=columns, where=self.name)
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=names):
                for row in batch.to_pylist():
                    yield Place(source, number), row
                    number += 1

    def _unreadable(self, error: Exception) -> InputError:
        kind = "Parquet" if self.name.endswith(".parquet") else "JSON Lines"
        return InputError(f"{self.name}: cannot be read as {kind} ({_one_line(error)})")


def find_files(location: str | Path) -> list[DataFile]:
    """Return the files of rows at a location.

    Args:
        location: A file, a folder or a glob; a path of this machine or a URI such as `s3://bucket/train/*.parquet`.

    Returns:
        The files in the order of their names; of a folder, those with an ending that is known.

    Raises:
        InputError: There is no such file or store, or a file has an unknown ending.
    """
    given = str(location)
    filesystem, path, prefix = _open(given)
    try:
        found = _list(filesystem, path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{given}: cannot be reached ({_one_line(error)})") from None
    if not found:
        raise InputError(
            f"{given}: no such file, folder of {_ENDINGS[0]} or .parquet files, or glob; each row of a file is {ROW}"
        )
    files = [DataFile(_name(each, given, prefix), filesystem, each) for each in found]
    for file in files:
        if not file.name.endswith(_ENDINGS):
            ending = "".join(PurePosixPath(file.name).suffixes[-1:]) or "(none)"
            raise InputError(f"{file.name}: got the ending {ending}, but allowed are {', '.join(_ENDINGS)}")
    return files


def check_types(schema: pa.Schema, *, columns: Columns | None, where: str) -> None:
    """Refuse a table whose columns hold something else than a row does.

    Args:
        schema: Of the table.
        columns: Where the keys of a row are; None: each in the column of its name.
        where: The table, for the errors.

    Raises:
        InputError: Naming the column, its type and what is needed.
    """
    for key in ("prompt", "completion", "text", "messages"):
        name = key if columns is None else columns.get(key)
        if name is None or name not in schema.names:
            continue
        type_ = schema.field(name).type
        if not pa.types.is_null(type_) and not (_is_messages(type_) if key == "messages" else _is_text(type_)):
            needed = "a list of {role, content}" if key == "messages" else "text"
            raise InputError(f"{where}: the column {name!r} holds {type_}, but {needed} is needed")


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return type_ in (pa.string(), pa.large_string(), pa.string_view())


def _is_messages(type_: pa.DataType) -> bool:
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)) or not pa.types.is_struct(type_.value_type):
        return False
    return {"role", "content"} <= {field.name for field in type_.value_type}


def _open(given: str) -> tuple[fs.FileSystem, str, str]:
    """Return the store, the path in it, and what stands before such paths in names: nothing on this machine."""
    scheme, separator, _ = given.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(given)), ""
    uri = given
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in given:
        # Left to itself, pyarrow tries for a quarter of an hour.
        uri += f"{'&' if '?' in given else '?'}retry_limit_seconds={_PATIENCE_S}"
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{given}: cannot be reached ({_one_line(error)})") from None
    return filesystem, path, f"{scheme}://"


def _list(filesystem: fs.FileSystem, path: str) -> list[str]:
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.File:
        return [path]
    if kind == fs.FileType.Directory:
        inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = [info.path for info in inside if info.type == fs.FileType.File]
        hidden = len(PurePosixPath(path).parts)
        return sorted(
            each
            for each in files
            if each.endswith(_ENDINGS) and not any(p.startswith((".", "_")) for p in PurePosixPath(each).parts[hidden:])
        )
    if any(character in path for character in "*?["):
        return sorted(each for each in ArrowFSWrapper(filesystem).glob(path) if filesystem.get_file_info(each).is_file)
    return []


def _name(path: str, given: str, prefix: str) -> str:
    return f"{prefix}{path}" if prefix or os.path.isabs(given) else os.path.relpath(path)


def _parse(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return InputError(f"not UTF-8 text ({error}); each line is {ROW}")
    except json.JSONDecodeError as error:
        return InputError(f"not JSON ({error.msg} at column {error.colno}); each line is {ROW}")


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
