"""Log-probabilities in the two forms that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from calm_graph.generate.requests import TokenLogprob
from calm_graph.http.objects import unchecked

_LOWEST = -9999.0  # JSON has no infinity; vLLM's number for it

Logged = tuple[str, Sequence[TokenLogprob] | None]
"""A token's text, and itself and the likeliest ones; None has nothing before it."""


def completion_logprobs(tokens: Sequence[Logged], *, offset: int) -> tuple[Logprobs, int]:
    """Return the form of /v1/completions.

    Args:
        tokens: In order.
        offset: Characters of the tokens before them.

    Returns:
        The log-probabilities, and the offset after the last token.
    """
    texts, offsets = [], []
    chosen: list[float | None] = []
    top: list[dict[str, float] | None] = []
    for text, entries in tokens:
        texts.append(text)
        offsets.append(offset)
        offset += len(text)
        chosen.append(_finite(entries[0].logprob) if entries else None)
        # Two tokens may have one text, such as parts of a character: the likelier one keeps it, the chosen one always.
        likeliest: dict[str, float] = {}
        for entry in entries or ():
            likeliest.setdefault(entry.text, _finite(entry.logprob))
        top.append(likeliest or None)
    # OpenAI's type has no None in its lists, but its servers send it for the first token of an echoed prompt.
    lists: Any = {"tokens": texts, "text_offset": offsets, "token_logprobs": chosen, "top_logprobs": top}
    return unchecked(Logprobs, **lists), offset


def chat_logprob(entries: Sequence[TokenLogprob]) -> ChatCompletionTokenLogprob:
    """Return one token in the form of /v1/chat/completions.

    Args:
        entries: The token and then the likeliest ones.
    """
    own, *likeliest = entries
    return unchecked(
        ChatCompletionTokenLogprob,
        token=own.text,
        bytes=_bytes(own.text),
        logprob=_finite(own.logprob),
        top_logprobs=[
            unchecked(TopLogprob, token=entry.text, bytes=_bytes(entry.text), logprob=_finite(entry.logprob))
            for entry in likeliest
        ],
    )


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


def _bytes(text: str) -> list[int] | None:
    """Return a token's bytes; None where it is no whole character."""
    return None if "\ufffd" in text else list(text.encode())
