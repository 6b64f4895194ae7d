"""`calm-graph serve-augmenter`: a model whose states others may read, and whose weights stay here."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from calm_graph.cli.common import Subparsers, add_command

if TYPE_CHECKING:
    from calm_graph.serve.augmenter_settings import AugmenterSettings


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add serve-augmenter."""
    parser = add_command(
        commands,
        "serve-augmenter",
        summary="give others the states of some layers of a model, and never its weights",
        examples="""
        calm-graph serve-augmenter gemma3-270m --layers 3,7,11 --num-replicas 0
        calm-graph serve-augmenter gemma3-270m --onnx exports/gemma3-int8 --num-replicas 0 --api-key-file keys.txt
        calm-graph serve-augmenter gemma3-270m --layers 3,7,11 --num-replicas 2 --num-cpus 4 --host 0.0.0.0
        calm-graph serve runs/helpdesk --remote gemma3-270m=http://127.0.0.1:8001
        """,
    )
    parser.add_argument("name", metavar="NAME", help="card of the model; with --onnx, what it is called")
    parser.add_argument(
        "--layers",
        type=_layers,
        default=(),
        metavar="I,J,...",
        help="layers that may be read, 0-based; default: all that the ONNX export has",
    )
    parser.add_argument("--onnx", metavar="DIR", help="run this export, without torch")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one without Ray; default: 8001")
    parser.add_argument("--api-key-file", metavar="FILE", help="lines NAME:KEY; without keys everybody may ask")
    parser.add_argument(
        "--num-replicas",
        type=int,
        default=1,
        metavar="N",
        help="on Ray, at /augmenters/NAME; 0 is one in this process, without Ray; default: 1",
    )
    parser.add_argument("--num-cpus", type=float, help="of each replica, and its threads; default: 1, without Ray all")
    parser.add_argument("--num-gpus", type=float, default=0, help="of each replica; default: 0")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: what the files hold")
    parser.add_argument("--max-tokens", type=int, default=16_384, metavar="N", help="of one request; default: 16384")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code.
    """
    from calm_graph.serve.run import serve_augmenter_here, serve_augmenter_on_ray

    settings = read_settings(options)
    serve = serve_augmenter_on_ray if settings.num_replicas else serve_augmenter_here
    serve(
        settings,
        host=options.host,
        port=options.port,
        on_ready=lambda address: _say(f"states of {settings.name} at {address} (Ctrl-C drains and ends)"),
        on_draining=lambda _: _say("no more requests; answering those under way"),
    )
    return 0


def read_settings(options: argparse.Namespace) -> AugmenterSettings:
    """Return the settings of the command line.

    Raises:
        DeclarationError: One of them is out of range.
    """
    from calm_graph.serve.augmenter_settings import AugmenterSettings

    same = ("name", "layers", "onnx", "num_replicas", "num_cpus", "num_gpus", "dtype", "max_tokens")
    fields = {name: getattr(options, name) for name in same}
    fields |= {"api_keys_file": options.api_key_file, "registries": options.registry}
    return AugmenterSettings.parse(fields, where="command line")


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; write layers as 3,7,11") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
