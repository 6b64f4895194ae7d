"""Training rows as a user writes them: `{"prompt", "completion"}`, `{"messages"}` or `{"text"}`, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_graph.errors import InputError
from calm_graph.model.prompts import messages_text, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = str | Path | Sequence[Mapping[str, Any]]
"""Where rows come from: a JSONL file, or a list in memory."""

_SHAPES = '{"prompt", "completion"}, {"messages"} or {"text"}'
_ROLES = ("system", "user", "assistant")
_MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as text.

    Args:
        prompt: What the anchor reads before the completion, control tokens included; empty for a `{"text"}` row.
        completion: What it is trained to say.
        prompt_text: What the augmenters read for the prompt: no control tokens.
        rendered: Whether a chat template wrote the prompt, with all its special tokens.
        closed: Whether the completion already ends as the chat template ends a turn; else the end token is added.
        where: The row: `train.jsonl:17`, or `data[16]`.
        augmenter_inputs: Augmenter name -> inputs by name, arrays of one sample.
    """

    prompt: str
    completion: str
    prompt_text: str
    rendered: bool
    closed: bool
    where: str
    augmenter_inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class _RowError(InputError):
    """What is wrong with one row; the place is added by whoever knows it."""


def read_examples(data: Rows, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Read rows and turn each into samples of text; a row with several supervised turns becomes one sample per turn.

    Keys other than those of the row's shape are left alone, so rows may carry an id or a source. An assistant message
    with `"weight": 0` is read but not trained on. `"augmenter_inputs": {augmenter: {input: array}}` feeds augmenters
    that read something else than text.

    Args:
        data: A JSONL file, or a list of rows.
        tokenizer: The anchor's; its chat template renders `{"messages"}` rows.

    Returns:
        The samples, in the order of the rows.

    Raises:
        InputError: The file cannot be read, no rows are left, or rows are wrong; the first few are listed with their
            places, what came and what is allowed.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for where, row in _read(data):
        try:
            inputs = _augmenter_inputs(row)
            examples.extend(replace(each, augmenter_inputs=inputs) for each in _examples(row, where, tokenizer))
        except InputError as error:
            problems.append(f"{where}: {error}")
    name = data if isinstance(data, str | Path) else "data"
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_MAX_SHOWN])
        more = f"\n  and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
        raise InputError(f"{name}: {len(problems)} unusable row{'s' if len(problems) > 1 else ''}\n{shown}{more}")
    if not examples:
        raise InputError(f"{name}: no rows; each row is {_SHAPES}")
    return examples


def _read(data: Rows) -> Iterator[tuple[str, object]]:
    """Yield each row with its place; a line that is no JSON is yielded as the error it raised."""
    if not isinstance(data, str | Path):
        yield from ((f"data[{index}]", row) for index, row in enumerate(data))
        return
    path = Path(data)
    if not path.is_file():
        raise InputError(f"{data}: no such file; a JSONL file is needed, each line {_SHAPES}")
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line)
        except UnicodeDecodeError as error:
            raise InputError(f"{data}: not UTF-8 text ({error}); a JSONL file is needed, each line {_SHAPES}") from None


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def _examples(row: object, where: str, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    if isinstance(row, json.JSONDecodeError):
        raise _RowError(f"not JSON ({row.msg} at column {row.colno}); each line is {_SHAPES}")
    if not isinstance(row, Mapping):
        raise _RowError(f"got {_short(row)}, but a row is {_SHAPES}")
    keys = [key for key in ("prompt", "messages", "text") if key in row]
    if len(keys) != 1 or ("completion" in row) != (keys == ["prompt"]):
        raise _RowError(f"got the keys {', '.join(map(str, row)) or '(none)'}, but a row is {_SHAPES}")
    if keys == ["messages"]:
        return _turns(row["messages"], where, tokenizer)
    if keys == ["text"]:
        return [Example("", _text(row, "text"), "", rendered=False, closed=False, where=where)]
    prompt = _text(row, "prompt", hint='; a row without a prompt is {"text"}')
    return [Example(prompt, _text(row, "completion"), prompt, rendered=False, closed=False, where=where)]


def _augmenter_inputs(row: object) -> Mapping[str, Mapping[str, Any]]:
    given = row.get("augmenter_inputs", {}) if isinstance(row, Mapping) else {}
    if not isinstance(given, Mapping) or not all(isinstance(inputs, Mapping) for inputs in given.values()):
        raise _RowError(f"augmenter_inputs: got {_short(given)}, but {{augmenter: {{input: array}}}} is needed")
    return given


def _text(row: Mapping[str, Any], key: str, *, hint: str = "") -> str:
    value = row[key]
    if not isinstance(value, str):
        raise _RowError(f"{key}: got {_short(value)}, but a text is needed")
    if not value:
        raise _RowError(f"{key}: got '', but a text is needed{hint}")
    return value


def _turns(messages: object, where: str, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Return one sample per supervised assistant turn: in one sample, earlier turns would see later text."""
    if not tokenizer.chat_template:
        raise _RowError('messages: the anchor has no chat template; give {"prompt", "completion"} rows')
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise _RowError(f"messages: got {_short(messages)}, but a list is needed")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else message
        if role not in _ROLES:
            raise _RowError(f"messages[{index}].role: got {_short(role)}, but allowed are {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            got = _short(message.get("content"))
            raise _RowError(f"messages[{index}].content: got {got}, but a text is needed")
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0]
    if not turns:
        raise _RowError("messages: no assistant message to train on")
    return [_turn(messages, turn, where, tokenizer) for turn in turns]


def _turn(messages: Sequence[Any], turn: int, where: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    if turn == 0:
        raise _RowError('messages[0]: an assistant message has no prompt before it; a row without a prompt is {"text"}')
    content = messages[turn]["content"]
    if not content:
        raise _RowError(f"messages[{turn}].content: got '', but a text is needed")
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
        where=where,
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
