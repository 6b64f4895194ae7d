"""Key-value arithmetic (paper, Table 1): what keys are worth, sums of numbers, and sums of keys.

The rows are `{"prompt", "completion"}` in the data folder's `kv/`. `python -m examples.arithmetic.questions` writes
those of the demo; those of other keys are written in the same way.
"""

from __future__ import annotations

from calm_graph.evaluate.tasks.task import Task

TASKS = (
    "substitution",
    "numeric",
    "kv_arithmetic",
    "kv_arithmetic_mixed",
    "substitution_seen",
    "kv_arithmetic_seen",
    "numeric_long",
    "kv_arithmetic_long",
)
"""Over keys that were not in training; `_mixed` has keys of several augmenters in a row, `_seen` those of training,
`_long` three to six operands and products."""


def tasks() -> list[Task]:
    """Return a task for each of `TASKS`; a folder without some of them is asked with `--only`."""
    return [
        Task(
            suite="kv",
            name=name,
            data=f"kv/{name}.test.jsonl",
            train=("kv/train.jsonl",),
            dev=("kv/dev.jsonl",),
            prompt="{prompt}",
            reference="{completion}",
            # Small models' tokenizers put spaces between digits.
            answer="packed",
            metrics=("accuracy", "bits_per_byte"),
            # None by default: small models that know single lines only are confused by others before them.
            num_shots=0,
            shots_from="kv/dev.jsonl",
            stop=("\n",),
            max_new_tokens=8,
        )
        for name in TASKS
    ]
