"""Train the checkpoint that ships with the demo: `demo-both`, by the same recipe, for longer than a demo may take."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from examples.arithmetic.compositions import both
from examples.arithmetic.data import DEPARTMENT_NAMES
from examples.arithmetic.demo import SHIPPED
from examples.arithmetic.recipe import train_composition


def main() -> None:
    """Train and write the checkpoint, with what it took in training.json."""
    parser = argparse.ArgumentParser(prog="python -m examples.arithmetic.train_shipped", description=__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train_composition(both, list(DEPARTMENT_NAMES), steps=args.steps, seed=0, out=Path(folder))
    model.save_pretrained(args.out)
    record = {
        "command": f"python -m examples.arithmetic.train_shipped --steps {args.steps}",
        "steps": args.steps,
        "seed": 0,
        "train_seconds": round(time.perf_counter() - started_s),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
