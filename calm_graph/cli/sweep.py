"""`calm-graph sweep`: train a composition in many ways, and compare what each way adds and gains."""

from __future__ import annotations

import argparse

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_file_argument,
    add_json_argument,
    add_show_argument,
    print_json,
    read_plan,
)
from calm_graph.cli.train import read_settings
from calm_graph.declare.settings import TrainSettings
from calm_graph.declare.space import Space

_VALUES = {
    "placement": "every:2,every:4 or at:3+7+11",
    "num_heads": "4,8",
    "reading": "prompt,stream",
    "positions": "none,rotary,distance",
    "learning_rate": "1e-3,3e-3",
}
_SETTINGS = ("max_steps", "batch_size", "seed", "max_length", "device")


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add sweep."""
    parser = add_command(
        commands,
        "sweep",
        summary="try placements, heads, readings and learning rates side by side, and rank them",
        examples="""
        calm-graph sweep helpdesk.py --data train.jsonl --eval dev.jsonl --placement every:2,every:4 --max-steps 500
        calm-graph sweep helpdesk.py --data train.jsonl --eval dev.jsonl --reading prompt,stream --stop-early
        calm-graph sweep helpdesk.py --data train.jsonl --eval dev.jsonl --num-heads 4,8 --num-trials 10 --resume
        """,
    )
    add_file_argument(parser)
    parser.add_argument("--data", required=True, action="append", metavar="JSONL", help="rows to train on")
    parser.add_argument(
        "--eval", dest="eval_data", required=True, action="append", metavar="JSONL", help="held-out rows: the score"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the sweep (default: sweeps/NAME)")
    parser.add_argument("--resume", action="store_true", help="run what failed, did not end, or is new")
    for name, example in _VALUES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=f"try_{name}", metavar="X,X", help=f"values to try: {example}"
        )
    parser.add_argument("--num-trials", metavar="N", type=int, help="a random draw of so many (default: all)")
    parser.add_argument("--stop-early", action="store_true", help="stop what is behind at an evaluation (ASHA)")
    parser.add_argument("--cpus-per-trial", metavar="N", type=int, default=1, help="default: 1")
    parser.add_argument("--gpus-per-trial", metavar="N", type=float, default=0, help="default: 0; 0.5 shares one")
    for name in _SETTINGS:
        default = TrainSettings.model_fields[name].default
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X", help=f"default: {default}")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="NAME=VALUE", help="any setting of `train`"
    )
    add_show_argument(parser)
    add_json_argument(parser)
    # The learning rate is one of the values to try, and each trial is one process.
    parser.set_defaults(run=run, learning_rate=None, num_workers=None, use_gpu=None)


def run(options: argparse.Namespace) -> int:
    """Sweep, and print the trials.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0, or 1 when no trial finished.
    """
    settings = read_settings(options)
    given = {name: getattr(options, f"try_{name}") for name in _VALUES}
    space = Space.parse(
        {name: [each.strip() for each in text.split(",")] for name, text in given.items() if text is not None},
        where="command line",
    )
    composition = read_plan(options).composition
    from calm_graph.train.ray_sweep import sweep
    from calm_graph.train.sweep_report import print_table
    from calm_graph.train.sweep_results import BEST_FILE, PLOT_FILE

    result = sweep(
        composition,
        data=options.data,
        eval_data=options.eval_data,
        space=space,
        out=options.out,
        settings=settings,
        num_trials=options.num_trials,
        stop_early=options.stop_early,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        resume=options.resume,
        show=options.show,
    )
    if options.json:
        best = result.best.record() if result.best else None
        trials = [trial.record() for trial in result.trials]
        print_json({"folder": str(result.folder), "best": best, "front": result.front, "trials": trials})
    else:
        print_table(result)
        files = [PLOT_FILE, *([BEST_FILE] if result.best else [])]
        print(f"\n{', '.join(str(result.folder / name) for name in files)}")
    return 0 if result.best else 1
