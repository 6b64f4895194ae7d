"""Accuracy of a model on the demo's tasks, answered by greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from examples.arithmetic.data import DEPARTMENT_NAMES, Row, Split, Task, accuracy, test_rows

TASKS: tuple[tuple[Task, Split], ...] = (
    ("substitution", "seen"),
    ("substitution", "unseen"),
    ("numeric", "unseen"),
    ("key_value", "seen"),
    ("key_value", "unseen"),
    ("mixed", "unseen"),
)
BATCH_SIZE = 250

Report = dict[str, Any]


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int = 3) -> list[str]:
    """Answer prompts by greedy decoding.

    Args:
        model: Anything with transformers' `generate`.
        tokenizer: Its tokenizer.
        prompts: Expressions up to and including `=`.
        max_new_tokens: The longest answer.

    Returns:
        The answers as text.
    """
    found: list[str] = []
    for first in range(0, len(prompts), BATCH_SIZE):
        batch = tokenizer(
            list(prompts[first : first + BATCH_SIZE]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        )
        with torch.no_grad():
            ids = model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        new = ids[:, batch["input_ids"].shape[1] :]
        found += [text.replace(" ", "") for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def measure(
    name: str, model: Any, tokenizer: Any, *, count: int, seed: int, departments: Sequence[str] = DEPARTMENT_NAMES
) -> list[Report]:
    """Measure a model on every task.

    Args:
        name: What the report calls it.
        model: As in `answers`.
        tokenizer: As in `answers`.
        count: Rows of each task.
        seed: Of the split into seen and unseen keys.
        departments: Whose keys are asked about; the mixed task needs two.

    Returns:
        `{"model", "task", "split", "accuracy", "count"}` for each task.
    """
    reports = []
    for task, split in TASKS:
        if task == "mixed" and len(departments) < 2:
            continue
        rows: list[Row] = test_rows(task, list(departments), split=split, count=count, seed=seed)
        score = accuracy(answers(model, tokenizer, [row.prompt for row in rows]), rows)
        reports.append({"model": name, "task": task, "split": split, "accuracy": round(score, 4), "count": count})
    return reports


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Write reports as a table, a line a model, as in the paper's Table 1."""
    heads = [f"{task.replace('_', '-')} ({split})" if task != "numeric" else "numeric" for task, split in TASKS]
    scores = {(row["model"], row["task"], row["split"]): row["accuracy"] for row in reports}
    names = list(dict.fromkeys(row["model"] for row in reports))
    width = max(len(name) for name in names)
    lines = [f"{'':<{width}}  " + "  ".join(heads)]
    for name in names:
        cells = [scores.get((name, task, split)) for task, split in TASKS]
        shown = ["-" if cell is None else f"{100 * cell:.1f}" for cell in cells]
        lines.append(
            f"{name:<{width}}  " + "  ".join(f"{cell:>{len(head)}}" for cell, head in zip(shown, heads, strict=True))
        )
    return "\n".join(lines)
