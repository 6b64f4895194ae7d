"""Texts with `{fields}` of a row in them: prompts, references and programs of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

Fields = Mapping[str, Any]
"""A row: names and their values."""


class _Text(Formatter):
    """Python's format strings, where a list is written one item a line and nothing but a row's values is reached."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name:
            raise KeyError(field_name)
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list):
            return "\n".join(map(str, value))
        return str(super().format_field(value, format_spec))


def fill(template: str, fields: Fields) -> str:
    """Write a row's values into a template.

    Args:
        template: `{name}` is the row's value, `{name[0][key]}` a part of it; braces themselves are doubled.
        fields: The row.

    Returns:
        The text.

    Raises:
        ValueError: The row does not have a field that the template names.
    """
    try:
        return _Text().vformat(template, (), fields).replace("\r\n", "\n")  # some rows were written on Windows
    except (KeyError, IndexError, TypeError) as error:
        known = ", ".join(map(str, fields))
        raise ValueError(f"the template names {error}, but the row's fields are {known}") from None


def check_template(template: str) -> None:
    """Refuse a template that no row can fill.

    Raises:
        ValueError: Its braces do not match, or it names attributes.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces that stand in the text") from None
    if bad := [name for name in names if not name or "." in name]:
        raise ValueError(f"{{{bad[0]}}} names no field of a row; write {{field}} or {{field[0]}}")
