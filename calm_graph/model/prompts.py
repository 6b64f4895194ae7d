"""How a prompt becomes the anchor's tokens; training and generation must do it in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calm_graph.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": ...}`."""


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens before a text; those after it would end the prompt before its completion."""
    ids = list(tokenizer("", add_special_tokens=True)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        ids.pop()
    return ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, rendered: bool = False) -> list[int]:
    """Return the token ids of a prompt, ready for its completion.

    Args:
        tokenizer: The anchor's.
        prompt: The text.
        rendered: Whether a chat template wrote it, with all its special tokens.

    Returns:
        The ids, with the special tokens that stand before a text.
    """
    ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return ids if rendered else start_ids(tokenizer) + ids


def nonempty_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the token ids of a prompt; at least one, because the first token of a text is predicted from something.

    Args:
        tokenizer: The anchor's.
        prompt: The text, which may be empty.

    Raises:
        InputError: It is empty, and no token of the tokenizer begins a text.
    """
    if ids := prompt_ids(tokenizer, prompt):
        return ids
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("prompt: got an empty text, and the tokenizer has no token that begins one")
    return [int(start)]


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return messages as the anchor's chat template writes them.

    Args:
        tokenizer: The anchor's, with a chat template.
        messages: In order.
        add_generation_prompt: Whether the text ends where the assistant begins to speak.
        continue_final_message: Whether the text ends with that of the last message, for more of it.
        variables: Further ones that the template reads.

    Returns:
        The text, special tokens included.

    Raises:
        InputError: The template refuses the messages, for instance two of one role in a row.
    """
    from jinja2 import TemplateError

    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(variables or {}),
        )
    except TemplateError as error:
        raise InputError(f"messages: the anchor's chat template refuses them: {error}") from None
    assert isinstance(text, str)
    return text


def messages_text(messages: Sequence[Message]) -> str:
    """Return what augmenters read of messages: their text, without the anchor's control tokens."""
    return "\n".join(message["content"] for message in messages)
