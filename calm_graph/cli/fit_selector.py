"""`calm-graph fit-selector`: learn from rows which augmenters a prompt needs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_json_argument,
    add_row_arguments,
    add_show_argument,
    print_json,
    read_row_options,
)
from calm_graph.cli.generate import load_model
from calm_graph.errors import InputError


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add fit-selector."""
    parser = add_command(
        commands,
        "fit-selector",
        summary="learn a gate that tells from a prompt which augmenters are worth running",
        examples="""
        calm-graph fit-selector runs/helpdesk --data dev.jsonl --keep english.jsonl --out runs/helpdesk/gate.safetensors
        calm-graph serve runs/helpdesk --selector helpdesk=runs/helpdesk/gate.safetensors
        calm-graph evaluate kv --checkpoint runs/x --systems composed_selected --selector runs/x/gate.safetensors
        """,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `train` or `join` wrote, or a hub id")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DATA",
        help="rows, as `train` takes them: one needs an augmenter if its completion is likelier with all than with all "
        "but it; may be repeated",
    )
    parser.add_argument(
        "--keep", action="append", metavar="DATA", help="rows of what the anchor should do alone; may be repeated"
    )
    add_row_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="a .safetensors file")
    parser.add_argument(
        "--layer", type=int, metavar="N", help="the anchor's, after which it looks (default: a quarter of the way up)"
    )
    parser.add_argument(
        "--min-gain", type=float, default=0.01, metavar="X", help="nats per token that count (default: 0.01)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="lower runs augmenters more often (default: 0.5)"
    )
    add_show_argument(parser)
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Fit, and print how well the gate decides.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        InputError: The gate could not be written, or rows are wrong.
    """
    out: Path = options.out
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise InputError(f"--out: got {out}, but the name of a .safetensors file in a folder that exists is needed")
    model = load_model(options.checkpoint)
    from calm_graph.train.gate import fit_selector

    try:
        fitted = fit_selector(
            model,
            data=options.data,
            keep=options.keep,
            layer=options.layer,
            min_gain=options.min_gain,
            threshold=options.threshold,
            **read_row_options(options),
            show=options.show,
        )
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    fitted.selector.save(out)
    if options.json:
        print_json({name: asdict(decided) for name, decided in fitted.decided.items()})
        return 0
    for name, decided in fitted.decided.items():
        print(
            f"{name}: needed by {decided.needed} and chosen for {decided.chosen} of {decided.num_rows} held-out rows, "
            f"{decided.right} of them decided rightly"
        )
    print(f"{out}: looks after layer {fitted.selector.layer} of {model.plan.anchor.name!r}")
    return 0
