"""Write the rows: told.jsonl, train.jsonl and dev.jsonl over a fifth of the keys, and what `evaluate kv` asks."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from examples.key_value.world import EXAMPLE, Row, Split, keys, row, test_rows, told

# What a key is worth is learnt in the first steps, on keys alone; numbers among the keys keep sums as they are.
ALONE_SHARE, NUMBER_SHARE, NUMERIC_SHARE = 0.15, 0.2, 0.1
# The prompt's example is always the same and half of the tokens, so most told rows leave it out.
TOLD_EXAMPLE_SHARE, TOLD_NUMBER_SHARE = 0.25, 0.1


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m examples.key_value.questions", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/key_value/data"))
    parser.add_argument("--num-told", type=int, default=28_800)
    parser.add_argument("--num-train", type=int, default=16_000)
    parser.add_argument("--count", type=int, default=200, help="questions of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the rows")
    parser.add_argument(
        "--split", choices=("seen", "tune"), default="seen", help="tune asks about the dev keys: to choose a recipe"
    )
    args = parser.parse_args()
    trained: Split = args.split
    asked: Split = "unseen" if trained == "seen" else "dev"
    for name, task, split in (
        ("substitution", "substitution", asked),
        ("numeric", "numeric", asked),
        ("kv_arithmetic", "kv_arithmetic", asked),
        ("kv_arithmetic_seen", "kv_arithmetic", trained),
        ("numeric_long", "numeric_long", asked),
        ("kv_arithmetic_long", "kv_arithmetic_long", asked),
    ):
        write(args.out / "kv" / f"{name}.test.jsonl", test_rows(task, split=split, count=args.count, seed=args.seed))
    write(args.out / "kv/told.jsonl", told_rows(args.num_told, split=trained, seed=args.seed))
    write(args.out / "kv/train.jsonl", training_rows(args.num_train, split=trained, seed=args.seed))
    rng = random.Random(f"dev/{args.seed}")
    # Keys that are not trained on, unless those are the ones that the test asks about.
    held_out: Split = "dev" if trained == "tune" else trained
    watched = [row(rng, keys(held_out, seed=args.seed), num_operands=2) for _ in range(64)]
    write(args.out / "kv/dev.jsonl", watched)


def told_rows(count: int, *, split: Split = "seen", seed: int = 0) -> list[Row]:
    """Draw expressions of one to three operands, each also told in numbers.

    Args:
        count: So many.
        split: Whose keys.
        seed: Of the split and the rows.

    Returns:
        Prompt, the same told, and completion.
    """
    rng = random.Random(f"told/{split}/{seed}")
    names = keys(split, seed=seed)
    rows = []
    for _ in range(count):
        drawn = row(rng, names, num_operands=rng.randint(1, 3), number_share=TOLD_NUMBER_SHARE)
        start = EXAMPLE if rng.random() < TOLD_EXAMPLE_SHARE else "\n"
        prompt = start + drawn["prompt"].removeprefix(EXAMPLE)
        rows.append({**drawn, "prompt": prompt, "told": told(prompt)})
    return rows


def training_rows(count: int, *, split: Split = "seen", seed: int = 0) -> list[Row]:
    """Draw rows in the order in which they are trained on.

    Args:
        count: So many.
        split: Whose keys.
        seed: Of the split and the rows.

    Returns:
        Keys alone for a twentieth of the way, then mostly sums of two.
    """
    rng = random.Random(f"train/{split}/{seed}")
    names = keys(split, seed=seed)
    rows = []
    for index in range(count):
        if index < count / 20 or rng.random() < ALONE_SHARE:
            rows.append(row(rng, names, num_operands=1))
        else:
            share = 1.0 if rng.random() < NUMERIC_SHARE else NUMBER_SHARE
            rows.append(row(rng, names, num_operands=2, number_share=share))
    return rows


def write(file: Path, rows: Sequence[Row]) -> None:
    """Write JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
