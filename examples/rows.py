"""Write train.jsonl and dev.jsonl from the rows that a suite's tasks name to train and to choose on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from calm_graph.evaluate.tasks.task import Split, Task
from registry import registry
from registry.weights import load_tokenizer

Row = dict[str, str]


def write_rows(
    out: Path,
    tasks: Mapping[str, Task],
    *,
    anchor: str,
    max_tokens: int,
    num_train: int,
    num_dev: int,
    folder: Path | None = None,
) -> None:
    """Draw short rows, always the same ones, and write them in a mixed order.

    Args:
        out: Folder of the two files.
        tasks: Name -> task.
        anchor: Card of the model whose tokens are counted.
        max_tokens: The most of a row, prompt and completion together.
        num_train: Rows of each task to train on, where there are so many.
        num_dev: Rows of each task to choose on.
        folder: Of the suites' data; None: the one that CALM_GRAPH_DATA names.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(registry.get(anchor))

    def short(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if len(tokenizer(row["prompt"] + row["completion"]).input_ids) <= max_tokens]

    drawn: dict[Split, list[Row]] = {"train": [], "dev": []}
    for name, task in tasks.items():
        counts = []
        of_split: list[tuple[Split, tuple[str, ...], int]] = [
            ("train", task.train, num_train),
            ("dev", task.dev, num_dev),
        ]
        for split, files, most in of_split:
            rows = short(task.rows(split, folder=folder)) if files else []
            random.Random(f"{split}/{name}").shuffle(rows)
            drawn[split] += rows[:most]
            counts.append(f"{len(rows[:most])} of {len(rows)}")
        print(f"{name}: train {counts[0]}, dev {counts[1]} short rows")
    for split, rows in drawn.items():
        random.Random(split).shuffle(rows)
        file = out / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{file}: {len(rows)} rows")
