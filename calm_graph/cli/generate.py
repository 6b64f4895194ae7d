"""`calm-graph generate`: continue one prompt, streaming."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calm_graph.cli.common import (
    Subparsers,
    add_command,
    add_json_argument,
    add_remote_argument,
    print_json,
)
from calm_graph.errors import InputError

if TYPE_CHECKING:
    from calm_graph.generate.sampling import Sampling
    from calm_graph.generate.selector import Selector
    from calm_graph.model.composed import ComposedModel


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add generate."""
    parser = add_command(
        commands,
        "generate",
        summary="continue a prompt with a trained composition; the text is written as it is made",
        examples="""
        calm-graph generate runs/helpdesk "What does a lamp cost?"
        calm-graph generate runs/helpdesk "What does a lamp cost?" --augmenter acme-prices=0
        echo "What does a lamp cost?" | calm-graph generate runs/helpdesk - --temperature 0.7 --seed 1 --json
        """,
    )
    add_checkpoint_arguments(parser, temperature=0.0)
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    """Add CHECKPOINT and the options that `generate` and `chat` share.

    Args:
        parser: Of the command.
        temperature: Its default.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder that `train` wrote, or a hub id")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument(
        "--temperature", type=float, default=temperature, help=f"0 takes the likeliest token; default: {temperature:g}"
    )
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens only; default: 1")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument(
        "--augmenter",
        dest="scales",
        action="append",
        default=[],
        metavar="NAME=SCALE",
        help="scale what an augmenter contributes; 0 switches it off",
    )
    parser.add_argument(
        "--selector",
        metavar="PACKAGE.MODULE:FUNCTION|FILE",
        help="what chooses the augmenters of each prompt, such as a gate of fit-selector; default: all of them run",
    )
    parser.add_argument(
        "--onnx",
        dest="exports",
        action="append",
        default=[],
        metavar="DIR",
        help="run this export in place of the augmenter it was made from; may be repeated",
    )
    add_remote_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Print the continuation.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.
    """
    scales = read_scales(options.scales)
    sampling = read_sampling(options)
    prompt = sys.stdin.read().removesuffix("\n") if options.prompt == "-" else options.prompt
    model = load_model(options.checkpoint, exports=options.exports, remotes=options.remotes)
    from calm_graph.generate.stream import stream_text

    answer = stream_text(
        model,
        prompt,
        sampling=sampling,
        on_text=None if options.json else write,
        scales=scales,
        selector=load_selector(options, model),
    )
    if options.json:
        facts: dict[str, object] = {
            "text": answer.text,
            "stopped": answer.stopped,
            "num_prompt_tokens": answer.num_prompt_tokens,
            "num_new_tokens": answer.num_new_tokens,
            "seconds": round(answer.seconds, 3),
            "augmenters": scales,
        }
        print_json(facts)
    else:
        write("\n")
    return 130 if answer.stopped == "interrupted" else 0


def read_sampling(options: argparse.Namespace) -> Sampling:
    """Return how tokens are chosen."""
    from calm_graph.generate.sampling import Sampling

    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )


def read_scales(given: Sequence[str]) -> dict[str, float]:
    """Read `NAME=SCALE`.

    Args:
        given: As on the command line.

    Returns:
        Augmenter name -> factor.

    Raises:
        InputError: One is not of this form.
    """
    scales: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            scales[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise InputError(f"augmenter: got {text!r}, but NAME=SCALE is needed, such as acme-prices=0.5")
    return scales


def load_model(checkpoint: str, *, exports: Sequence[str] = (), remotes: Sequence[str] = ()) -> ComposedModel:
    """Load a checkpoint on the GPU if there is one, without the progress bars of its parts.

    Args:
        checkpoint: A folder, or an id on the hub.
        exports: Folders of ONNX exports, to run in place of the augmenters they were made from.
        remotes: `NAME=URL` of services, to run in place of the augmenters of these names.

    Raises:
        InputError: One of them is not `NAME=URL`.
    """
    import torch
    from transformers.utils import logging

    from calm_graph.model.composed import ComposedModel

    logging.disable_progress_bar()
    for each in remotes:
        if not all(each.partition("=")):
            raise InputError(f"remote: got {each!r}, but NAME=URL is needed, such as code=https://models.example.com")
    replaced: dict[str, Any] = {
        "exports": exports,
        "remotes": {name: url for name, _, url in (each.partition("=") for each in remotes)},
    }
    if torch.cuda.is_available():
        return ComposedModel.from_pretrained(checkpoint, device_map="cuda", **replaced)
    # Most CPUs have no bf16 arithmetic and run it several times slower; widening the weights is exact.
    return ComposedModel.from_pretrained(checkpoint, dtype=torch.float32, **replaced)


def load_selector(options: argparse.Namespace, model: ComposedModel) -> Selector | None:
    """Return what --selector names.

    Raises:
        InputError: There is no such function.
        CheckpointError: The file is no selector for this composition.
    """
    from calm_graph.generate.selector import read_selector

    return None if options.selector is None else read_selector(options.selector, model)


def write(text: str) -> None:
    """Write a piece of an answer so that it is seen at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
