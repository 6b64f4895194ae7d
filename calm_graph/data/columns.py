"""Which columns of a table are the keys of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calm_graph.data.rows import BESIDE, KEYS, ROW, SHAPES, misspelt, naming_advice
from calm_graph.declare.base import near
from calm_graph.errors import InputError

Columns = Mapping[str, str]
"""Key of a row -> the column that holds it: `{"prompt": "question", "completion": "answer"}`."""


def check_columns(columns: Columns | None) -> None:
    """Refuse columns that make no row.

    Raises:
        InputError: A key is none of a row's, or the keys make no shape.
    """
    for key in columns or {}:
        if key not in KEYS:
            raise InputError(f"columns: got the key {key!r}, but allowed are {', '.join(KEYS)}{near(key, KEYS)}")
    if columns is not None and frozenset(columns) - BESIDE not in SHAPES:
        raise InputError(f"columns: got the keys {', '.join(columns) or '(none)'}, but a row is {ROW}")


def columns_to_read(found: Sequence[str], *, columns: Columns | None, where: str) -> list[str]:
    """Return which columns of a table are read.

    Args:
        found: All it has.
        columns: Where the keys of a row are; None: each in the column of its name.
        where: The table, for the errors.

    Returns:
        Their names in the table.

    Raises:
        InputError: A column is missing, looks misspelt, or the columns make no row.
    """
    if columns is not None:
        for column in columns.values():
            if column not in found:
                raise InputError(f"{where}: {_missing(column, found)}")
        return list(dict.fromkeys(columns.values()))
    hint = misspelt(found, among=KEYS)
    if hint or not any(shape <= set(found) for shape in SHAPES):
        listed = ", ".join(found) or "(none)"
        raise InputError(f"{where}: got the columns {listed}, but a row is {ROW}{naming_advice(hint)}")
    return [name for name in found if name in KEYS]


def as_row(read: object, columns: Columns | None) -> object:
    """Return what was read with its columns under the keys of a row, and all others left out.

    Args:
        read: A row under the names of its source.
        columns: Where the keys of a row are; None leaves it as it is.

    Returns:
        The row, or the `InputError` that says which column is missing.
    """
    if columns is None or not isinstance(read, Mapping):
        return read
    for column in columns.values():
        if column not in read:
            return InputError(_missing(column, [str(name) for name in read]))
    return {key: read[column] for key, column in columns.items()}


def _missing(column: str, found: Sequence[str]) -> str:
    return f"no column {column!r} among {', '.join(found) or '(none)'}{near(column, found)}"
