"""`calm-graph precompute`: run the augmenters once over the rows that training will use."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_file_argument,
    add_json_argument,
    add_row_arguments,
    add_show_argument,
    print_json,
    read_plan,
    read_row_options,
)


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add precompute."""
    parser = add_command(
        commands,
        "precompute",
        summary="run the augmenters once over training rows, and keep the layers that attachments read",
        examples="""
        calm-graph precompute helpdesk.py --data train.jsonl --data dev.jsonl --out states/helpdesk
        calm-graph precompute helpdesk.py --data train.jsonl --out states/helpdesk --dry-run
        calm-graph precompute helpdesk.py --data train.jsonl --out states/helpdesk --num-workers 8 --use-gpu
        """,
    )
    add_file_argument(parser)
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DATA",
        help="rows that training will use, from wherever it takes them, held-out ones too; may be repeated",
    )
    add_row_arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the states; what is there is kept")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="of the states (default: bf16)"
    )
    parser.add_argument(
        "--anchor",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the anchor's states below its first attachment as well (default: yes)",
    )
    parser.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="Ray actors; 0 is this process (default: 0)"
    )
    parser.add_argument("--use-gpu", action="store_true", help="give each actor a GPU")
    parser.add_argument("--device", default="auto", metavar="X", help="default: a GPU when there is one")
    parser.add_argument("--dry-run", action="store_true", help="only count tokens, measure, and say what it will take")
    add_show_argument(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compute the states, and say how to use them.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0.
    """
    composition = read_plan(options).composition
    from calm_graph.states.precompute import precompute

    estimate = precompute(
        composition,
        *options.data,
        out=options.out,
        dtype=options.dtype,
        anchor=options.anchor,
        **read_row_options(options),
        num_workers=options.num_workers,
        use_gpu=options.use_gpu,
        device=options.device,
        dry_run=options.dry_run,
        show=options.show,
    )
    if options.json:
        print_json(asdict(estimate))
    elif not options.dry_run:
        print(
            f"{options.out}: the states of {estimate.num_samples:,} samples; use them with train --states {options.out}"
        )
    return 0
