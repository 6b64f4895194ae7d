"""Write train.jsonl and dev.jsonl: programs of descriptions and the other way round, from the code suite's files."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_graph.evaluate.suites.code import tasks
from examples.rows import write_rows


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.code.data", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the suite's data; default: CALM_GRAPH_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/code"))
    parser.add_argument("--max-tokens", type=int, default=224, help="of the anchor, prompt and completion together")
    parser.add_argument("--num-train", type=int, default=800, help="rows of each task, where there are so many")
    parser.add_argument("--num-dev", type=int, default=48, help="rows of each task")
    args = parser.parse_args()
    write_rows(
        args.out,
        {task.label: task for task in tasks() if task.train or task.dev},
        anchor="smollm2-135m-instruct",
        max_tokens=args.max_tokens,
        num_train=args.num_train,
        num_dev=args.num_dev,
        folder=args.data,
    )


if __name__ == "__main__":
    main()
