"""`calm-graph train`: train the attachments of a declared composition."""

from __future__ import annotations

import argparse

from calm_graph.cli.common import (
    Subparsers,
    add_columns_argument,
    add_command,
    add_file_argument,
    add_json_argument,
    add_show_argument,
    print_json,
    read_changes,
    read_columns,
    read_plan,
)
from calm_graph.declare.settings import TrainSettings

_FLAGS = ("max_steps", "batch_size", "learning_rate", "seed", "max_length", "device", "num_workers")


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add train."""
    parser = add_command(
        commands,
        "train",
        summary="train the attachments of a composition; the frozen models stay as they are",
        examples="""
        calm-graph train helpdesk.py --data train.jsonl --eval dev.jsonl --out runs/helpdesk
        calm-graph train helpdesk.py --data train.jsonl --out runs/helpdesk --resume
        calm-graph train helpdesk.py --data 's3://bucket/train/*.parquet' --columns prompt=question,completion=answer
        calm-graph train helpdesk.py --data train.jsonl --states states/helpdesk
        calm-graph train helpdesk.py --data told.jsonl --set told_layer=4 --out runs/told
        calm-graph train helpdesk.py --data train.jsonl --start runs/told --out runs/helpdesk
        calm-graph train both.py --data a.jsonl --data b.jsonl --start runs/a --start runs/b --out runs/both
        calm-graph train helpdesk.py --data train.jsonl --max-steps 2000 --set patience=3 --set precision=bf16
        calm-graph train helpdesk.py --data train.jsonl --out /shared/helpdesk --num-workers 16 --use-gpu
        calm-graph train helpdesk.py --data train.jsonl --out /shared/helpdesk --num-workers 4:16
        """,
    )
    add_file_argument(parser)
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DATA",
        help='rows to train on, each {"prompt", "completion"}, {"messages"} or {"text"}: a .jsonl or .parquet file, a '
        "folder or a glob of them, a URI (s3://, gs://), or hf:NAME:SPLIT; may be repeated",
    )
    parser.add_argument(
        "--eval", dest="eval_data", action="append", metavar="DATA", help="held-out rows; the best evaluation is kept"
    )
    parser.add_argument(
        "--keep",
        action="append",
        metavar="DATA",
        help="rows over which the composition should go on saying what its anchor says (against forgetting); may be "
        "repeated",
    )
    add_columns_argument(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder of the run, or s3://..., which then loads as a model (default: runs/NAME)"
    )
    parser.add_argument(
        "--states", metavar="DIR", help="cached states of `calm-graph precompute`; augmenters are not loaded then"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last state in DIR")
    parser.add_argument(
        "--start",
        action="append",
        metavar="CHECKPOINT",
        help="a checkpoint of the same composition, to train its attachments further; or several, each of some of its "
        "augmenters",
    )
    for name in _FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X", help=f"default: {_default(name)}")
    parser.add_argument("--use-gpu", action="store_true", default=None, help="each Ray worker gets a GPU of its own")
    names = ", ".join(name for name in TrainSettings.model_fields if name not in (*_FLAGS, "use_gpu"))
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="NAME=VALUE", help=f"any other setting: {names}"
    )
    add_show_argument(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, and print where the checkpoint is.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0.
    """
    settings = read_settings(options)
    composition = read_plan(options).composition
    from calm_graph.train import fit

    result = fit(
        composition,
        data=options.data,
        eval_data=options.eval_data,
        keep=options.keep,
        columns=read_columns(options.columns),
        out=options.out,
        settings=settings,
        resume=options.resume,
        start=options.start,
        states=options.states,
        show=options.show,
    )
    if options.json:
        facts = {"checkpoint": result.checkpoint, "stopped": result.stopped, "steps": result.steps}
        print_json({**facts, "metrics": result.metrics})
    else:
        measured = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        print(f"{result.checkpoint}: {result.stopped} after {result.steps} steps  {measured}")
    return 0


def read_settings(options: argparse.Namespace) -> TrainSettings:
    """Return the settings of the command line.

    Args:
        options: What `add_parser` asked for.

    Returns:
        Defaults, changed by the flags and by each `--set`.

    Raises:
        InputError: A `--set` is not `NAME=VALUE`.
        DeclarationError: A setting is unknown or out of range.
    """
    given = {name: getattr(options, name) for name in (*_FLAGS, "use_gpu")}
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    changes |= read_changes(options.changes)
    return TrainSettings.parse(changes, where="command line")


def _default(name: str) -> str:
    value = TrainSettings.model_fields[name].default
    return "the anchor's context" if value is None else str(value)
