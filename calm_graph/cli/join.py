"""`calm-graph join`: trained compositions of one anchor as one, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from calm_graph.cli.common import Subparsers, add_command, add_file_argument, read_plan


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add join."""
    parser = add_command(
        commands,
        "join",
        summary="put the attachments of trained compositions of one anchor into one, without training",
        examples="""
        calm-graph join both.py runs/language runs/code --out runs/both
        calm-graph fit-selector runs/both --data dev.jsonl --out runs/both/gate.safetensors
        calm-graph serve runs/both --selector both=runs/both/gate.safetensors
        """,
    )
    add_file_argument(parser)
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+", help="each has some of the augmenters; together they have all"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the new checkpoint")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code.
    """
    plan = read_plan(options)
    from calm_graph.model.build import build_model
    from calm_graph.model.checkpoint import joined_tensors, put_tensors

    tensors = joined_tensors(options.checkpoints)
    model = build_model(plan, load_augmenters=False)
    put_tensors(model, tensors, where=", ".join(options.checkpoints))
    model.save_pretrained(options.out)
    print(f"{options.out}: {plan.composition.name}, of {' and '.join(options.checkpoints)}")
    return 0
