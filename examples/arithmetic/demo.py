"""The paper's key-value arithmetic (Table 1): train three compositions of shipped models, compare them, and ask."""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from calm_graph.model.composed import ComposedModel
from calm_graph.progress import Show
from examples.arithmetic import compositions
from examples.arithmetic.data import DEPARTMENT_NAMES, departments, prices
from examples.arithmetic.measure import measure, table
from examples.arithmetic.recipe import train_composition
from examples.arithmetic.served import answers, served
from registry import registry
from registry.weights import load_causal_lm, load_tokenizer

SHIPPED = Path(__file__).parent / "trained"
"""`demo-both` of the same recipe, trained longer than a demo may take."""

LIVE = (("garden", compositions.garden, 250), ("kitchen", compositions.kitchen, 250), ("both", compositions.both, 1150))
"""What is trained while you wait: whose keys, the composition, optimiser steps."""


def main() -> None:
    """Train, compare, draw and answer."""
    parser = argparse.ArgumentParser(prog="python -m examples.arithmetic.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="of the split into seen and unseen keys, and of training")
    parser.add_argument("--count", type=int, default=500, help="questions of each task")
    parser.add_argument("--num-workers", type=int, default=2, help="Ray workers that train; 0: this process")
    parser.add_argument("--serve", action="store_true", help="leave the server running at the end, until Ctrl-C")
    args = parser.parse_args()
    report(args.out, seed=args.seed, count=args.count, num_workers=args.num_workers)
    if args.serve:
        with served(best_checkpoint(args.out, args.seed), num_replicas=0, port=8000) as address:
            print(f"\nplayground: {address}/   API: {address}/v1   Ctrl-C ends it", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()


def report(out: Path, *, seed: int, count: int, num_workers: int = 0, show: Show = "auto") -> list[dict[str, Any]]:
    """Run the demo.

    Args:
        out: Gets report.json, accuracy.png and a folder for each composition; what is there is replaced.
        seed: Of the split and of training; the shipped checkpoint belongs to seed 0.
        count: Questions of each task.
        num_workers: Ray workers that train; 0 trains in this process.
        show: How training shows its progress.

    Returns:
        The rows of report.json.
    """
    started_s = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in ("demo-arithmetic", *(f"demo-prices-{name}" for name in DEPARTMENT_NAMES)):
        card = registry.get(name)
        rows += measure(name, load_causal_lm(card), load_tokenizer(card), count=count, seed=seed)
    for name, composition, steps in LIVE:
        names = list(DEPARTMENT_NAMES) if name == "both" else [name]
        print(f"\ntraining {composition.name}: {steps} steps on 20% of the keys of {' and '.join(names)}", flush=True)
        folder = out / name / time.strftime("%Y%m%d-%H%M%S")
        model = train_composition(
            composition, names, steps=steps, seed=seed, out=folder, show=show, num_workers=num_workers
        )
        rows += measure(
            f"{composition.name}, {steps} steps now", model, model.tokenizer, count=count, seed=seed, departments=names
        )
    if seed == 0 and (SHIPPED / "composition.json").exists():
        model = ComposedModel.from_pretrained(SHIPPED)
        steps = json.loads((SHIPPED / "training.json").read_text("utf-8"))["steps"]
        rows += measure(f"demo-both, {steps} steps, shipped", model, model.tokenizer, count=count, seed=seed)
    (out / "report.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    plot(rows, out / "accuracy.png")
    print(f"\naccuracy in %, on {count} questions each; 'unseen' keys were in no composition's training data\n")
    print(table(rows))
    checkpoint = best_checkpoint(out, seed)
    print(f"\nserving {checkpoint} with Ray Serve" if num_workers else f"\nserving {checkpoint}", flush=True)
    with served(checkpoint, num_replicas=min(1, num_workers), port=free_port()) as address:
        ask(address, seed)
    print(f"\n{out / 'report.json'} and accuracy.png written; {time.perf_counter() - started_s:.0f} s in all")
    return rows


def best_checkpoint(out: Path, seed: int) -> Path:
    """Return the composition of both departments: the shipped one, or of another seed the one trained last."""
    if seed == 0 and (SHIPPED / "composition.json").exists():
        return SHIPPED
    return max((out / "both").iterdir())


def ask(address: str, seed: int) -> None:
    """Ask a server a few expressions over unseen keys, and show what the price lists say."""
    garden, kitchen = (departments()[name].keys("unseen", seed=seed) for name in DEPARTMENT_NAMES)
    asked = [f"{garden[0]}=", f"{garden[1]}+{garden[2]}=", f"{garden[3]}+{kitchen[3]}=", f"{kitchen[4]}+{garden[5]}+7="]
    known = prices()
    without = {"demo-prices-garden": 0.0}
    print(f"\n  {'asked of the server':<20} answer   without the garden's prices")
    found = answers(address, "demo-both", asked)
    for prompt, answer, alone in zip(
        asked, found, answers(address, "demo-both", asked, augmenters=without), strict=True
    ):
        values = [known.get(word) or int(word) for word in prompt.rstrip("=").split("+")]
        print(f"  {prompt:<20} {answer:>6}   {alone:>6}   ({' + '.join(map(str, values))} = {sum(values)})")


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the accuracies as groups of bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["model"] for row in rows))
    tasks = list(dict.fromkeys((row["task"], row["split"]) for row in rows))
    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    for place, name in enumerate(names):
        found = {(row["task"], row["split"]): row["accuracy"] for row in rows if row["model"] == name}
        left = [index + (place - len(names) / 2) * 0.8 / len(names) for index in range(len(tasks))]
        axes.bar(left, [100 * found.get(task, 0) for task in tasks], width=0.8 / len(names), label=name)
    axes.set_xticks(range(len(tasks)), [f"{task.replace('_', '-')}\n{split}" for task, split in tasks])
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    # Models this small gain little from a second thread, and lose much by it where others use the machine.
    torch.set_num_threads(1)
    main()
