"""Write train.jsonl and dev.jsonl from the rows that a suite's tasks name to train and to choose on."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from calm_graph.errors import CalmGraphError
from calm_graph.evaluate.tasks.task import Split, Task
from registry import registry
from registry.weights import load_tokenizer

Row = dict[str, str]

ANCHOR = "smollm2-135m-instruct"


def main(
    tasks: Mapping[str, Task],
    *,
    example: str,
    doc: str | None,
    max_tokens: int,
    num_train: int,
    num_dev: int,
    anchor: str = ANCHOR,
) -> None:
    """Write the rows of an example as its command line says.

    Args:
        tasks: Name -> task.
        example: Its folder.
        doc: What it does.
        max_tokens: As in `write_rows`, where nothing else is said; so are the others.
        num_train: See there.
        num_dev: See there.
        anchor: See there.
    """
    parser = argparse.ArgumentParser(prog=f"python -m examples.{example}.data", description=doc)
    parser.add_argument("--data", type=Path, help="folder of the suites' data; default: CALM_GRAPH_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs") / example)
    parser.add_argument(
        "--max-tokens", type=int, default=max_tokens, help="of the anchor, prompt and completion together"
    )
    parser.add_argument("--num-train", type=int, default=num_train, help="rows of each task, where there are so many")
    parser.add_argument("--num-dev", type=int, default=num_dev, help="rows of each task")
    args = parser.parse_args()
    try:
        write_rows(
            args.out,
            tasks,
            anchor=anchor,
            max_tokens=args.max_tokens,
            num_train=args.num_train,
            num_dev=args.num_dev,
            folder=args.data,
        )
    except CalmGraphError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


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
        num_dev: Rows of each task to choose on; they are not trained on, where a task has both from one file.
        folder: Of the suites' data; None: the one that CALM_GRAPH_DATA names.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(registry.get(anchor))

    def short(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if len(tokenizer(row["prompt"] + row["completion"]).input_ids) <= max_tokens]

    drawn: dict[Split, list[Row]] = {"dev": [], "train": []}
    of_split: list[tuple[Split, int]] = [("dev", num_dev), ("train", num_train)]
    for split, most in of_split:
        found = {name: _rows(task, split, folder) for name, task in tasks.items()}
        uses: Counter[str] = Counter()
        # Those with few rows choose first. The same sentences in several languages teach the answers, not to read, so
        # an answer is drawn again only where a task has no others left.
        for name in sorted(tasks, key=lambda name: len(found[name])):
            rows = [row for row in short(found[name]) if split == "dev" or row not in drawn["dev"]]
            random.Random(f"{split}/{name}").shuffle(rows)
            rows.sort(key=lambda row: uses[row["completion"]])
            uses.update(row["completion"] for row in rows[:most])
            drawn[split] += rows[:most]
            print(f"{name}: {split} {len(rows[:most])} of {len(rows)} short rows")
    for split, rows in drawn.items():
        random.Random(split).shuffle(rows)
        file = out / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{file}: {len(rows)} rows, {len({row['completion'] for row in rows})} different answers")


def _rows(task: Task, split: Split, folder: Path | None) -> list[Row]:
    names_files = task.train if split == "train" else task.dev
    return task.rows(split, folder=folder) if names_files else []
