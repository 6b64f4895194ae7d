"""The common base of everything declared: frozen, unknown keys refused with a near name, errors as paths."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from calm_graph.errors import DeclarationError, Problem

_WANTED = {
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "string_type": "a text is needed",
    "bool_type": "True or False is needed",
    "tuple_type": "a list is needed, such as [1, 2]",
    "model_type": "the fields of {class_name} are needed, as a mapping",
    "model_attributes_type": "the fields of {class_name} are needed, as a mapping",
}


class Declared(BaseModel):
    """Base of the declarations: immutable, hashable by value, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: ClassVar[str] = "composition"
    """What errors call it: the first part of each path."""

    @classmethod
    def parse(cls, data: object, *, where: str | None = None) -> Self:
        """Make one of plain data, such as parsed JSON or command-line text.

        Args:
            data: The fields as a mapping; numbers may be text.
            where: What the data is, for the error, such as a file name; None: what is declared.

        Returns:
            The declaration.

        Raises:
            DeclarationError: Fields are missing, unknown or have wrong values; all of them are listed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DeclarationError(problems_of(error, root=cls.root), where=where or cls.root) from None

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Declared]) -> Declared:
        """Name the nearest field in the error of each unknown key."""
        try:
            return handler(data)
        except ValidationError as error:
            # A "before" validator could only raise for the keys; wrapping keeps every other problem in the same report.
            details = [_with_suggestion(detail, cls.model_fields) for detail in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None


def near(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest of the names, or nothing."""
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _with_suggestion(detail: ErrorDetails, fields: Iterable[str]) -> InitErrorDetails:
    """Return the error's detail, with the known keys when it is about an unknown key of this model itself."""
    kind: str | PydanticCustomError = detail["type"]
    context = detail.get("ctx", {})
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        known = list(fields)
        hint = near(str(detail["loc"][0]), known) or f"; known keys: {', '.join(known)}"
        kind, context = PydanticCustomError("unknown_key", "unknown key{hint}", {"hint": hint}), {}
    elif detail["type"] == "unknown_key":
        kind = PydanticCustomError("unknown_key", "unknown key{hint}", context)
        context = {}
    return InitErrorDetails(type=kind, loc=detail["loc"], input=detail["input"], ctx=context)


def problems_of(error: ValidationError, *, root: str = "composition") -> tuple[Problem, ...]:
    """Return pydantic's findings as problems with paths.

    Args:
        error: What pydantic raised.
        root: The first part of each path.

    Returns:
        One problem per finding, such as `composition.augmenters[1].attach[2].anchor_layer: got 'x', but ...`.
    """
    return tuple(
        Problem(path_of(detail["loc"], root=root), _message(detail)) for detail in error.errors(include_url=False)
    )


def path_of(location: Iterable[str | int], *, root: str) -> str:
    """Return pydantic's location as a path; the `<tag>` parts of unions are not part of it."""
    parts = [root]
    for part in location:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif not part.startswith("<"):
            parts.append(f".{part}")
    return "".join(parts)


def _message(detail: ErrorDetails) -> str:
    """Return what came and what is needed."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "unknown_key":
        return detail["msg"]
    if kind == "missing":
        return "is missing"
    came = repr(detail["input"])
    came = came if len(came) <= 80 else came[:77] + "..."
    if kind == "literal_error":
        return f"got {came}, but allowed are {context['expected']}"
    if kind in _WANTED:
        if detail["loc"][-1:] == ("<attachments>",):
            return f"got {came}, but every(step), at(anchor_layers=[...]) or a list of attachments is needed"
        return f"got {came}, but {_WANTED[kind].format(**context)}"
    return f"got {came}: {detail['msg'].removeprefix('Value error, ')}"
