"""Write train.jsonl and dev.jsonl: short rows of each language, from the files of the translation suite."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_graph.evaluate.suites.translation import tasks
from examples.rows import write_rows

LANGUAGES = ("ace", "ban", "bho", "jav", "lij", "mar", "min", "sun")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.low_resource.data", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the suite's data; default: CALM_GRAPH_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/low_resource"))
    parser.add_argument("--max-tokens", type=int, default=160, help="of the anchor, prompt and completion together")
    parser.add_argument("--num-train", type=int, default=1000, help="rows of each language, where there are so many")
    parser.add_argument("--num-dev", type=int, default=24, help="rows of each language")
    args = parser.parse_args()
    # Any task of a language names all its rows to train and to choose on.
    of_language = {task.language: task for task in tasks() if task.train}
    write_rows(
        args.out,
        {language: of_language[language] for language in LANGUAGES},
        anchor="smollm2-135m-instruct",
        max_tokens=args.max_tokens,
        num_train=args.num_train,
        num_dev=args.num_dev,
        folder=args.data,
    )


if __name__ == "__main__":
    main()
