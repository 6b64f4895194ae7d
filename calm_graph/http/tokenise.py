"""Prompts as the anchor's tokens, without keeping other requests waiting while a long one is read."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from calm_graph.errors import InputError
from calm_graph.http.errors import BadValueError
from calm_graph.http.protocol import TemplateFields
from calm_graph.model.prompts import messages_text, prompt_ids, render_chat

T = TypeVar("T")

_MOST_SHRINKING = 4  # a normaliser may drop characters and join marks to their letters
LONG_TEXT = 20_000  # characters; shorter ones take less time than a thread is worth


def refuse_far_too_long(tokenizer: Any, num_characters: int, *, context_length: int, param: str) -> None:
    """Refuse a text that fits into no context however it is tokenised, before that takes time and memory.

    Args:
        tokenizer: The anchor's.
        num_characters: Of the text.
        context_length: Tokens.
        param: The field it came in.

    Raises:
        BadValueError: Even as the longest tokens there are, and made shorter by a normaliser, it is too long.
    """
    if num_characters > context_length * _longest_token(tokenizer) * _MOST_SHRINKING:
        message = f"the prompt has {num_characters} characters, but the context is {context_length} tokens"
        raise BadValueError(param, message, code="context_length_exceeded")


@lru_cache(maxsize=8)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()))


async def text_ids(tokenizer: Any, text: str, *, special_tokens: bool = True) -> list[int]:
    """Return the token ids of a text.

    Args:
        tokenizer: The anchor's.
        text: The text.
        special_tokens: Whether those that stand before a text are put before it.
    """
    return await _aside(len(text), lambda: prompt_ids(tokenizer, text, rendered=not special_tokens))


async def chat_ids(tokenizer: Any, body: TemplateFields) -> tuple[list[int], str]:
    """Return the token ids of messages, and the text that augmenters read.

    Args:
        tokenizer: The anchor's; one without a chat template was never shown a conversation, and reads the last message
            of the user alone.
        body: The messages and how they are written.

    Returns:
        Both.

    Raises:
        BadValueError: The messages or the ways to write them do not go together, or the template refuses them.
    """
    messages = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        for message in body.messages
    ]
    going_on = body.continue_final_message
    if going_on and body.add_generation_prompt:
        raise BadValueError("continue_final_message", "is not allowed together with add_generation_prompt")
    if going_on and messages[-1]["role"] != "assistant":
        raise BadValueError("continue_final_message", "the last message must be the assistant's")
    if not tokenizer.chat_template:
        if going_on or body.chat_template_kwargs:
            field = "continue_final_message" if going_on else "chat_template_kwargs"
            raise BadValueError(field, "the anchor has no chat template")
        users = [message["content"] for message in messages if message["role"] == "user"]
        if not users:
            raise BadValueError("messages", "the anchor has no chat template, so a message of the user is needed")
        return await text_ids(tokenizer, users[-1]), users[-1]
    _check_variables(tokenizer, body.chat_template_kwargs)

    def render() -> list[int]:
        start = not going_on if body.add_generation_prompt is None else body.add_generation_prompt
        text = render_chat(
            tokenizer,
            messages,
            add_generation_prompt=start,
            continue_final_message=going_on,
            variables=body.chat_template_kwargs,
        )
        return prompt_ids(tokenizer, text, rendered=True)

    text = messages_text(messages)
    try:
        return await _aside(len(text), render), text
    except InputError as error:
        raise BadValueError("messages", str(error).removeprefix("messages: ")) from None
    except Exception as error:
        # A template is a program of the model's authors: values it did not expect may fail in any way.
        message = f"the anchor's chat template fails on them: {type(error).__name__}: {error}"
        raise BadValueError("messages", message) from None


def _check_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Refuse variables that the template does not read, and names by which it could be replaced."""
    reserved = {"messages", "bos_token", "eos_token", *inspect.signature(tokenizer.apply_chat_template).parameters}
    words = set(re.findall(r"[A-Za-z_]\w*", str(tokenizer.chat_template))) - reserved
    for name in variables:
        if name not in words:
            nearest = difflib.get_close_matches(name, words, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise BadValueError(
                "chat_template_kwargs", f"the anchor's chat template does not read {name[:100]!r}{hint}"
            )


async def _aside(length: int, work: Callable[[], T]) -> T:
    """Do work on a text of some length, in a thread if it may take long."""
    return work() if length < LONG_TEXT else await asyncio.to_thread(work)
