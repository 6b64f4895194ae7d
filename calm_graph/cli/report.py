"""`calm-graph report`: the results of several evaluations side by side."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from calm_graph.cli.common import Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add report."""
    parser = add_command(
        commands,
        "report",
        summary="put the results of several evaluations side by side: other seeds, other checkpoints, other tasks",
        examples="""
        calm-graph report runs/a/results runs/b/results --out runs/report
        calm-graph report results_seed0 results_seed1 results_seed2 --out runs/seeds   # evaluated with --seed 0, 1, 2
        calm-graph report results composed_kept=results_kept --out runs/report   # also what one has more
        """,
    )
    parser.add_argument(
        "results",
        metavar="[NAME=]RESULTS",
        nargs="+",
        help="what `evaluate` wrote: its folder or its results.json, later ones win; with a NAME its `composed` is "
        "called so",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="of report.html, report.md and the like")
    parser.add_argument("--title", default="Evaluation", help="of the report; default: Evaluation")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report, and print its tables.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code.
    """
    from calm_graph.evaluate.reports.files import merge_files
    from calm_graph.evaluate.reports.report import write_report
    from calm_graph.evaluate.reports.tables import text

    named = [re.fullmatch(r"(?:(\w+)=)?(.+)", each) for each in options.results]
    parts = [(found[1], Path(found[2])) for found in named if found]
    results = merge_files([path for _, path in parts], names=[name for name, _ in parts])
    write_report(results, options.out, command=shlex.join(["calm-graph", *sys.argv[1:]]), title=options.title)
    print(text(results))
    print(f"\n{options.out}: report.html, report.md, results.json")
    return 0
