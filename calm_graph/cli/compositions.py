"""Commands about a declared composition; none of them imports torch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_file_argument,
    add_json_argument,
    print_json,
    read_plan,
)

if TYPE_CHECKING:
    from calm_graph.errors import Problem
    from calm_graph.plan.estimate import Estimate
    from calm_graph.plan.graph import Plan


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add check, describe, draw and schema."""
    parser = add_command(
        commands,
        "check",
        summary="check a composition: a table, or every problem at once",
        examples="calm-graph check compositions/helpdesk.py\ncalm-graph check runs/helpdesk --json",
    )
    add_file_argument(parser)
    add_json_argument(parser)
    parser.set_defaults(run=check)

    parser = add_command(
        commands,
        "describe",
        summary="show what a composition runs, attaches and costs",
        examples="calm-graph describe compositions/helpdesk.py\ncalm-graph describe runs/helpdesk --json",
    )
    add_file_argument(parser)
    add_json_argument(parser)
    parser.add_argument(
        "--context", metavar="TOKENS", type=_token_count, default=1024, help="tokens already read (default: 1024)"
    )
    parser.set_defaults(run=describe)

    parser = add_command(
        commands,
        "draw",
        summary="draw a composition",
        examples="calm-graph draw compositions/helpdesk.py -o helpdesk.svg\n"
        "calm-graph draw compositions/helpdesk.py -o helpdesk.md",
    )
    add_file_argument(parser)
    parser.add_argument(
        "-o",
        "--out",
        metavar="PATH",
        type=Path,
        help="a .svg picture, .md with Mermaid, .mmd or .txt (default: the composition's name with .svg)",
    )
    parser.set_defaults(run=draw)

    parser = add_command(
        commands,
        "schema",
        summary="print the JSON schema of compositions",
        examples="calm-graph schema > composition.schema.json",
    )
    parser.set_defaults(run=schema)


def check(options: argparse.Namespace) -> int:
    """Check a composition; print its table or its problems."""
    from calm_graph.errors import DeclarationError
    from calm_graph.plan.draw import table

    try:
        plan = read_plan(options)
    except DeclarationError as error:
        if not options.json:
            raise
        print_json({"file": options.file, "ok": False, "problems": _problems(error.problems), "notes": []})
        return 1
    if options.json:
        print_json({"file": options.file, "ok": True, "problems": [], "notes": _problems(plan.skipped)})
    else:
        print(f"{options.file}: ok\n\n{table(plan)}")
    return 0


def describe(options: argparse.Namespace) -> int:
    """Print what a composition runs, attaches and costs."""
    from calm_graph.plan.estimate import estimate
    from calm_graph.plan.tables import cost_table, table

    plan = read_plan(options)
    cost = estimate(plan, num_context_tokens=options.context)
    if options.json:
        print_json(_described(plan, cost))
    else:
        print(f"{table(plan)}\n\n{cost_table(plan, cost)}")
    return 0


def draw(options: argparse.Namespace) -> int:
    """Write a composition's picture and print where it is."""
    from calm_graph.plan.draw import write

    plan = read_plan(options)
    print(write(plan, options.out or f"{plan.composition.name}.svg"))
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON schema of compositions."""
    from calm_graph.declare.composition import Composition

    print_json(Composition.model_json_schema())
    return 0


def _problems(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [dataclasses.asdict(problem) for problem in problems]


def _described(plan: Plan, cost: Estimate) -> dict[str, Any]:
    return {
        "name": plan.composition.name,
        "anchor": plan.anchor.name,
        "runs": [
            {
                "name": run.name,
                "model": run.card.name,
                "architecture": run.card.architecture,
                "hidden_size": run.hidden_size,
                "num_layers": run.num_layers,
                "num_blocks": run.num_blocks,
                "taps": run.taps,
                "reading": run.reading,
                "open_words": run.open_words,
                "runtime": run.runtime,
                **dataclasses.asdict(cost.runs[run.name]),
            }
            for run in plan.runs
        ],
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "scale": edge.scale,
                "prompt_visibility": edge.prompt_visibility,
                "attachments": [dataclasses.asdict(found) for found in edge.attachments],
                **dataclasses.asdict(cost.edges[edge.source, edge.target]),
            }
            for edge in plan.edges
        ],
        "parallel": plan.parallel,
        "notes": _problems(plan.skipped),
        "num_attachment_parameters": cost.num_attachment_parameters,
        "num_trainable_parameters": cost.num_trainable_parameters,
        "num_frozen_parameters": cost.num_frozen_parameters,
        "share_of_anchor": cost.share_of_anchor,
        "num_context_tokens": cost.num_context_tokens,
        "flops_per_prompt_token": cost.flops_per_prompt_token,
        "flops_per_generated_token": cost.flops_per_generated_token,
        "cache_values_per_token": cost.cache_values_per_token,
    }


def _token_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"got {count}, but it counts tokens")
    return count
