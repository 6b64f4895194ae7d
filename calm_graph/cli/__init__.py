"""The command `calm-graph`: one thin function for each subcommand, in a module for each group of them."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# Each module has `add_parser(commands)`, which adds its subcommands and names the function of each with
# `set_defaults(run=...)`. What is heavy is imported inside those functions, so that every command pays only for itself.
GROUPS = (
    "calm_graph.cli.compositions",
    "calm_graph.cli.precompute",
    "calm_graph.cli.plan",
    "calm_graph.cli.train",
    "calm_graph.cli.join",
    "calm_graph.cli.fit_selector",
    "calm_graph.cli.sweep",
    "calm_graph.cli.generate",
    "calm_graph.cli.chat",
    "calm_graph.cli.evaluate",
    "calm_graph.cli.report",
    "calm_graph.cli.export",
    "calm_graph.cli.randomise",
    "calm_graph.cli.serve",
    "calm_graph.cli.bench_serve",
    "calm_graph.cli.serve_augmenter",
)

_EPILOG = """examples:
  calm-graph check compositions/helpdesk.py
  calm-graph describe compositions/helpdesk.py
  calm-graph draw compositions/helpdesk.py -o helpdesk.svg
  calm-graph plan compositions/helpdesk.py --gpu h100 --num-gpus 64 --tokens 1e9
  calm-graph train compositions/helpdesk.py --data train.jsonl --out runs/helpdesk
  calm-graph sweep compositions/helpdesk.py --data train.jsonl --eval dev.jsonl --placement every:2,every:4
  calm-graph chat runs/helpdesk
  calm-graph serve runs/helpdesk
  calm-graph bench-serve http://127.0.0.1:8000

exit codes: 0 done, 1 problems found, 2 wrong usage, 130 stopped by Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows `calm-graph`; None takes the process's own.

    Returns:
        The exit code: 0 done, 1 problems found, 130 stopped by Ctrl-C. Wrong usage leaves with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a table's lines must not break a terminal without Unicode
    options = _parser().parse_args(arguments)
    from calm_graph.errors import CalmGraphError
    from registry.errors import RegistryError

    try:
        _use_registries(options.registry)
        code: int = options.run(options)
        sys.stdout.flush()
    except (CalmGraphError, RegistryError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:  # its message says how to go on, where there is a way
        print(str(error) or "interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calm-graph",
        description="Compose a frozen language model with frozen augmenting models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in GROUPS:
        importlib.import_module(group).add_parser(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--registry",
            metavar="DIR",
            action="append",
            default=[],
            help="a folder of cards (*.json) to add to the registry; may be repeated",
        )
    return parser


def _use_registries(folders: Sequence[str]) -> None:
    if folders:
        from registry import registry

        for folder in folders:
            registry.add_folder(folder)


class _Version(argparse.Action):
    """Print the version; looked up only when it is asked for, because reading package metadata takes a while."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and leave")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        print(f"calm-graph {metadata.version('calm-graph')}")
        parser.exit()
