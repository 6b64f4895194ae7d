"""The base of every request body: unknown fields are refused by name, never ignored, unless they change nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

# These say who asks or how a provider books it; no answer depends on them.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Fields of OpenAI or vLLM that change the answer and that we do not have -> values that ask for nothing, besides null.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (False, True),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


class Fields(BaseModel):
    """Base of a body and of its parts: immutable, no conversion of types, null is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    harmless: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """Drop what changes nothing; refuse what is not known or not there."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                if value is not None:
                    kept[name] = value
            elif value is not None and name not in cls.harmless:
                cls._check_foreign(name, value)
        return kept

    @classmethod
    def _check_foreign(cls, name: str, value: Any) -> None:
        if name in cls.unsupported:
            neutral = cls.unsupported[name]
            if any(type(value) is type(allowed) and value == allowed for allowed in neutral):
                return
            allowed = " or ".join(["null", *map(repr, neutral)])
            raise PydanticCustomError(
                "unsupported_parameter",
                "this server does not support it; leave it out or send {allowed}",
                {"param": name, "allowed": allowed},
            )
        nearest = difflib.get_close_matches(name, [*cls.model_fields, *cls.unsupported], n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise PydanticCustomError("unknown_parameter", "unknown parameter{hint}", {"param": name, "hint": hint})
