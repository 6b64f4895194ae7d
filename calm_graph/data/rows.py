"""Training rows as a user writes them: `{"prompt", "completion"}`, `{"messages"}` or `{"text"}`, checked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray

from calm_graph.errors import InputError
from calm_graph.model.prompts import messages_text, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW = '{"prompt", "completion"}, {"messages"} or {"text"}'
"""What a row may be, for errors."""

KEYS = ("prompt", "completion", "messages", "text", "augmenter_inputs", "told")
"""The keys that are read; all others are left alone."""

BESIDE = frozenset({"augmenter_inputs", "told"})
"""Those that are no part of a row's shape."""

Inputs = Mapping[str, Mapping[str, NDArray[Any]]]
"""Augmenter name -> inputs by name, for a model that reads something else than text."""

SHAPES = (frozenset({"prompt", "completion"}), frozenset({"messages"}), frozenset({"text"}))
"""The keys that make a row."""

_ROLES = ("system", "user", "assistant")


class Source(NamedTuple):
    """A file or a table of rows.

    Args:
        name: As the user would write it.
        counts: `lines` are numbered from 1, as editors do; `rows` from 0.
    """

    name: str
    counts: Literal["lines", "rows"]


class Place(NamedTuple):
    """Where a row stands: `train.jsonl:17`, or `train.parquet[16]`."""

    source: Source
    number: int

    def __str__(self) -> str:
        name, counts = self.source
        return f"{name}:{self.number}" if counts == "lines" else f"{name}[{self.number}]"


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as text.

    Args:
        prompt: What the anchor reads before the completion, control tokens included; empty for a `{"text"}` row.
        completion: What it is trained to say.
        prompt_text: What the augmenters read for the prompt: no control tokens.
        rendered: Whether a chat template wrote the prompt, with all its special tokens.
        closed: Whether the completion already ends as the chat template ends a turn; else the end token is added.
        place: Of the row.
        augmenter_inputs: One sample's.
        told: The prompt as one would write it who knows what the augmenters know; None where the row has none.
    """

    prompt: str
    completion: str
    prompt_text: str
    rendered: bool
    closed: bool
    place: Place
    augmenter_inputs: Inputs = field(default_factory=dict)
    told: str | None = None


def shape_of(row: object) -> str:
    """Return which of the shapes a row has; a value of None counts as absent, as tables need it.

    Args:
        row: As it was read.

    Returns:
        The keys of its shape, such as `prompt, completion`.

    Raises:
        InputError: It is no mapping, has no shape or two, or a key that looks misspelt.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"got {_short(row)}, but a row is {ROW}")
    keys = [str(key) for key, value in row.items() if value is not None]
    given = frozenset(keys) & (frozenset(KEYS) - BESIDE)
    hint = misspelt(keys, among=KEYS)
    if given not in SHAPES:
        if given == {"prompt"} and not hint:
            raise InputError(f"got the keys {', '.join(keys)}, but no completion; a row is {ROW}")
        advice = naming_advice(hint) if hint or (keys and not given) else ""
        raise InputError(f"got the keys {', '.join(keys) or '(none)'}, but a row is {ROW}{advice}")
    if hint:
        raise InputError(f"got the keys {', '.join(keys)}{naming_advice(hint)}")
    return ", ".join(key for key in KEYS if key in given)


def misspelt(keys: Collection[str], *, among: Collection[str]) -> str:
    """Return `; did you mean 'x' by 'y'?` for a key that all but equals one that is not there, or nothing.

    Args:
        keys: What came.
        among: What would be understood.
    """
    for key in keys:
        close = () if key in among else difflib.get_close_matches(key.lower(), set(among).difference(keys), 1, 0.82)
        if close:
            return f"; did you mean {close[0]!r} by {key!r}?"
    return ""


def naming_advice(hint: str) -> str:
    """Return what to do about keys under other names, after what `misspelt` found."""
    what = "say where they are: columns={'prompt': ..., 'completion': ...}, --columns prompt=..."
    return f"{hint} Or {what}" if hint else f"; {what}"


def examples_of(row: object, place: Place, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Turn a row into samples of text; one with several supervised turns becomes one sample per turn.

    Keys other than those of the row's shape are left alone, so rows may carry an id or a source. An assistant message
    with `"weight": 0` is read but not trained on. `"augmenter_inputs": {augmenter: {input: array}}` feeds augmenters
    that read something else than text. `"told"`, beside a prompt, is what `TrainSettings.told_layer` compares with.

    Args:
        row: As it was read.
        place: Where.
        tokenizer: The anchor's; its chat template renders `{"messages"}` rows.

    Returns:
        The samples.

    Raises:
        InputError: What is wrong with the row; whoever reports it adds the place.
    """
    shape = shape_of(row)
    assert isinstance(row, Mapping)
    inputs = _augmenter_inputs(row)
    if shape == "messages":
        return _turns(row["messages"], place, inputs, tokenizer)
    if shape == "text":
        text = _text(row, "text")
        return [Example("", text, "", rendered=False, closed=False, place=place, augmenter_inputs=inputs)]
    prompt = _text(row, "prompt", hint='; a row without a prompt is {"text"}')
    completion = _text(row, "completion")
    told = None if row.get("told") is None else _text(row, "told")
    return [
        Example(
            prompt, completion, prompt, rendered=False, closed=False, place=place, augmenter_inputs=inputs, told=told
        )
    ]


def _augmenter_inputs(row: Mapping[str, Any]) -> Inputs:
    given = row.get("augmenter_inputs") or {}
    if not isinstance(given, Mapping) or not all(isinstance(inputs, Mapping) for inputs in given.values()):
        raise InputError(f"augmenter_inputs: got {_short(given)}, but {{augmenter: {{input: array}}}} is needed")
    return {
        name: {key: _array(value, f"augmenter_inputs.{name}.{key}") for key, value in inputs.items()}
        for name, inputs in given.items()
    }


def _array(value: object, key: str) -> NDArray[Any]:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{key}: got {_short(value)}, but an array is needed") from None
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bf16
    return array


def _text(row: Mapping[str, Any], key: str, *, hint: str = "") -> str:
    text = _check_text(row[key], key)
    if not text:
        raise InputError(f"{key}: got '', but a text is needed{hint}")
    return text


def _check_text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key}: got {_short(value)}, but a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{key}: got half a character ({value[error.start]!r}), but Unicode text is needed") from None
    return value


def _turns(messages: object, place: Place, inputs: Inputs, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return one sample per supervised assistant turn: in one sample, earlier turns would see later text."""
    if not tokenizer.chat_template:
        raise InputError('messages: the anchor has no chat template; give {"prompt", "completion"} rows')
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError(f"messages: got {_short(messages)}, but a list is needed")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else message
        if role not in _ROLES:
            raise InputError(f"messages[{index}].role: got {_short(role)}, but allowed are {', '.join(_ROLES)}")
        _check_text(message.get("content"), f"messages[{index}].content")
        keys = [str(key) for key in message]
        if hint := misspelt(keys, among=("role", "content", "weight")):
            raise InputError(f"messages[{index}]: got the keys {', '.join(keys)}{hint}")
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0]
    if not turns:
        raise InputError("messages: no assistant message to train on")
    return [_turn(messages, turn, place, inputs, tokenizer) for turn in turns]


def _turn(
    messages: Sequence[Any],
    turn: int,
    place: Place,
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
) -> Example:
    if turn == 0:
        raise InputError(
            'messages[0]: an assistant message has no prompt before it; a row without a prompt is {"text"}'
        )
    content = messages[turn]["content"]
    if not content:
        raise InputError(f"messages[{turn}].content: got '', but a text is needed")
    before = messages[:turn]
    prompt = render_chat(tokenizer, before)
    whole = render_chat(tokenizer, messages[: turn + 1], add_generation_prompt=False)
    # Templates that rewrite earlier turns do not continue their own prompt; such a turn is closed by the end token.
    answer = whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else content
    return Example(
        prompt=prompt,
        completion=answer,
        prompt_text=messages_text(before),
        rendered=True,
        closed=not answer.endswith(content.rstrip()),
        place=place,
        augmenter_inputs=inputs,
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
