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
from examples.arithmetic.measure import measure
from examples.arithmetic.recipe import train_composition


def main() -> None:
    """Train and write the checkpoint, with what it took and what it reaches in training.json."""
    parser = argparse.ArgumentParser(prog="python -m examples.arithmetic.train_shipped", description=__doc__)
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--seed", type=int, default=0, help="of the split into seen and unseen keys, and of training")
    parser.add_argument("--count", type=int, default=1000, help="questions of each task")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train_composition(both, list(DEPARTMENT_NAMES), steps=args.steps, seed=args.seed, out=Path(folder))
    model.save_pretrained(args.out)
    record = {
        "command": f"python -m examples.arithmetic.train_shipped --steps {args.steps} --seed {args.seed}",
        "steps": args.steps,
        "seed": args.seed,
        "train_seconds": round(time.perf_counter() - started_s),
        "train_cpu_seconds": round(time.process_time() - started_cpu_s),
        "count": args.count,
        "accuracy": {
            f"{row['task']} {row['split']}": row["accuracy"]
            for row in measure(both.name, model, model.tokenizer, count=args.count, seed=args.seed)
        },
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
