"""OpenAI's response types, filled in without the time that their own constructor takes."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def unchecked(kind: type[M], **fields: Any) -> M:
    """Return an object with these fields, ours among them, as they are.

    `openai` replaces `model_construct` by one that looks through every value (70 microseconds a chunk, once a token);
    this is pydantic's own. Checking instead would refuse what OpenAI's own servers send, such as a `finish_reason` of
    None in a stream of completions.

    Args:
        kind: One of OpenAI's types.
        fields: Of the object.
    """
    construct: Any = BaseModel.model_construct
    made: M = construct.__func__(kind, **fields)
    return made


def to_json(model: BaseModel) -> str:
    """Return one of OpenAI's objects as JSON: the fields that were set."""
    return model.model_dump_json(exclude_unset=True, warnings=False)
