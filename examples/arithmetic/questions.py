"""Write the demo's questions as files of rows, for `calm-graph evaluate kv --data DIR`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from examples.arithmetic.data import (
    DEPARTMENT_NAMES,
    Row,
    Split,
    Task,
    departments,
    draw_key,
    expression_row,
    test_rows,
)

QUESTIONS: tuple[tuple[str, Task, Split], ...] = (
    ("substitution", "substitution", "unseen"),
    ("numeric", "numeric", "unseen"),
    ("kv_arithmetic", "key_value", "unseen"),
    ("kv_arithmetic_mixed", "mixed", "unseen"),
    ("substitution_seen", "substitution", "seen"),
    ("kv_arithmetic_seen", "key_value", "seen"),
)
"""Name of the task in the suite, and where its rows come from."""


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.arithmetic.questions", description=__doc__)
    parser.add_argument("out", type=Path, help="the data folder; the files go into its kv/")
    parser.add_argument("--count", type=int, default=500, help="rows of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the split into seen and unseen keys")
    options = parser.parse_args()
    write(options.out, count=options.count, seed=options.seed)


def write(out: Path, *, count: int, seed: int = 0) -> None:
    """Write the rows of every task, and rows to train and to choose on.

    Args:
        out: The data folder.
        count: Rows of each file; of the training rows ten times as many.
        seed: Of the split into seen and unseen keys, and of the rows.
    """
    (out / "kv").mkdir(parents=True, exist_ok=True)
    for name, task, split in QUESTIONS:
        _write(
            out / "kv" / f"{name}.test.jsonl", test_rows(task, DEPARTMENT_NAMES, split=split, count=count, seed=seed)
        )
    for name, split, num_rows in (("train", "tune", 10 * count), ("dev", "dev", count)):
        _write(out / "kv" / f"{name}.jsonl", _expressions(split, count=num_rows, seed=seed))


def _expressions(split: Split, *, count: int, seed: int) -> list[Row]:
    rng = random.Random(f"questions/{split}/{seed}")
    keys = [key for department in departments().values() for key in department.keys(split, seed=seed)]
    return [expression_row(rng, draw_key(keys), num_operands=1 + index % 3) for index in range(count)]


def _write(path: Path, rows: Sequence[Row]) -> None:
    lines = [json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
