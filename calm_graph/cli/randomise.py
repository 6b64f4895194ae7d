"""`calm-graph randomise`: a model of a card's architecture with random weights, for ablations."""

from __future__ import annotations

import argparse

from calm_graph.cli.common import Subparsers, add_command


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add randomise."""
    parser = add_command(
        commands,
        "randomise",
        summary="write a model of the same architecture with random weights, for ablations",
        examples="""
        calm-graph randomise gemma3-270m models/gemma3-random
        calm-graph train ablation.py --data train.jsonl --registry models/gemma3-random   # reads gemma3-270m-random
        """,
    )
    parser.add_argument("name", metavar="NAME", help="a model of the registry")
    parser.add_argument("out", metavar="OUT", help="an empty or new folder")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the model, and say how it is named.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code.
    """
    from calm_graph.evaluate.baselines.random_weights import randomise
    from registry import registry

    card = randomise(registry.get(options.name), options.out, seed=options.seed)
    print(f"{options.out}: {card.description}; called {card.name} with --registry {options.out}")
    return 0
