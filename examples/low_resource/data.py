"""Write train.jsonl and dev.jsonl: short rows of each language, from the files of the translation suite."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from calm_graph.evaluate.suites.translation import tasks
from registry import registry
from registry.weights import load_tokenizer

LANGUAGES = ("ace", "ban", "bho", "jav", "lij", "mar", "min", "sun")
Row = dict[str, str]


def main() -> None:
    """Draw the rows, always the same ones, and write them."""
    parser = argparse.ArgumentParser(prog="python -m examples.low_resource.data", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the suite's data; default: CALM_GRAPH_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/low_resource"))
    parser.add_argument("--max-tokens", type=int, default=160, help="of the anchor, prompt and completion together")
    parser.add_argument("--num-train", type=int, default=1000, help="rows of each language, where there are so many")
    parser.add_argument("--num-dev", type=int, default=24, help="rows of each language")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(registry.get("smollm2-135m-instruct"))

    def short(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if len(tokenizer(row["prompt"] + row["completion"]).input_ids) <= args.max_tokens]

    drawn: dict[str, list[Row]] = {"train": [], "dev": []}
    # Any task of a language names all its rows to train and to choose on.
    of_language = {task.language: task for task in tasks() if task.train}
    for language in LANGUAGES:
        task, counts = of_language[language], []
        for split, most in (("train", args.num_train), ("dev", args.num_dev)):
            rows = short(task.rows("train" if split == "train" else "dev", folder=args.data))
            random.Random(f"{split}/{language}").shuffle(rows)
            drawn[split] += rows[:most]
            counts.append(f"{len(rows[:most])} of {len(rows)}")
        print(f"{language}: train {counts[0]}, dev {counts[1]} short rows")
    for split, rows in drawn.items():
        random.Random(split).shuffle(rows)
        file = args.out / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
