"""`calm-graph plan`: what a training run needs, worked out from the cards alone; imports no torch."""

from __future__ import annotations

import argparse
import dataclasses

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_file_argument,
    add_json_argument,
    print_json,
    read_plan,
)
from calm_graph.errors import InputError

_FIELDS = (
    "batch_size",
    "sequence_length",
    "prompt_share",
    "epochs",
    "precision",
    "states",
    "sharding",
    "activation_checkpointing",
    "told_layer",
    "keep_share",
)


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add plan."""
    from calm_graph.plan.budget import UTILISATION
    from calm_graph.plan.workload import Workload

    parser = add_command(
        commands,
        "plan",
        summary="work out what a training run needs: memory, time, disk and network, before anything is loaded",
        examples="""
        calm-graph plan helpdesk.py --gpu h100 --num-gpus 64 --tokens 1e9
        calm-graph plan helpdesk.py --gpu l4 --tokens 2e7 --epochs 3 --states cached --token-ratio gemma3-270m=0.9
        calm-graph plan helpdesk.py --gpu a100-80gb --num-gpus 8 --tokens 1e10 --sharding fsdp --json
        calm-graph plan helpdesk.py --gpu l4 --tokens 2e7 --keep-share 0.25 --activation-checkpointing true
        """,
    )
    add_file_argument(parser)
    parser.add_argument("--gpu", required=True, metavar="NAME", help="h100, a100-80gb, ...; a wrong name lists all")
    parser.add_argument("--num-gpus", metavar="N", type=int, default=1, help="devices (default: 1)")
    parser.add_argument(
        "--tokens", dest="num_tokens", metavar="N", required=True, help="anchor tokens to train on, as 1e9"
    )
    for name in _FIELDS:
        field = Workload.model_fields[name]
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="X", help=f"default: {field.default}")
    parser.add_argument(
        "--token-ratio",
        dest="token_ratios",
        metavar="AUGMENTER=X",
        action="append",
        default=[],
        help="its tokens for each token of the anchor (default: 1); may be repeated",
    )
    parser.add_argument(
        "--utilisation",
        metavar="SHARE",
        type=float,
        default=UTILISATION,
        help=f"model FLOPs reached over the device's peak (default: {UTILISATION})",
    )
    add_json_argument(parser)
    parser.set_defaults(run=plan)


def plan(options: argparse.Namespace) -> int:
    """Print the budget of a training run."""
    from calm_graph.plan.budget import make_budget
    from calm_graph.plan.budget_table import budget_table
    from calm_graph.plan.gpus import find_gpu
    from calm_graph.plan.workload import Workload

    gpu = find_gpu(options.gpu)
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    ratios = dict(_ratio(text) for text in options.token_ratios)
    workload = Workload.parse({**given, "num_tokens": options.num_tokens, "token_ratios": ratios}, where="command line")
    found = read_plan(options)
    budget = make_budget(found, workload, gpu=gpu, num_gpus=options.num_gpus, utilisation=options.utilisation)
    if options.json:
        memory = {**dataclasses.asdict(budget.memory), "peak": budget.memory.peak}
        flops = {**dataclasses.asdict(budget.sample_flops), "total": budget.sample_flops.total}
        facts = {"name": found.composition.name, "gpu": options.gpu.lower(), "num_gpus": options.num_gpus}
        print_json(
            {
                **facts,
                "utilisation": options.utilisation,
                "workload": workload.model_dump(),
                **dataclasses.asdict(budget),
                "memory": memory,
                "sample_flops": flops,
            }
        )
    else:
        print(
            budget_table(found, workload, budget, gpu=gpu, num_gpus=options.num_gpus, utilisation=options.utilisation)
        )
    return 0


def _ratio(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--token-ratio: got {text!r}, but AUGMENTER=X is needed, such as gemma3-270m=0.9")
    return name, value
