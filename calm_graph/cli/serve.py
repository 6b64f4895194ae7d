"""`calm-graph serve`: compositions behind an OpenAI-compatible API."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from calm_graph.cli.common import Subparsers, add_command, add_remote_argument

if TYPE_CHECKING:
    from calm_graph.serve.settings import ServeSettings


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add serve."""
    parser = add_command(
        commands,
        "serve",
        summary="serve trained compositions over one anchor, as people expect of an LLM server",
        examples="""
        calm-graph serve runs/helpdesk
        calm-graph serve runs/helpdesk shop=runs/shop --num-replicas 2 --num-cpus 8 --api-key-file keys.txt
        calm-graph serve runs/helpdesk --num-replicas 0 --port 0
        calm-graph serve runs/helpdesk --remote code=https://models.example.com:8001
        calm-graph serve runs/helpdesk --num-gpus 1 --dtype bfloat16 --host 0.0.0.0
        """,
    )
    parser.add_argument(
        "checkpoints",
        metavar="[NAME=]CHECKPOINT",
        nargs="+",
        help="folders that `train` wrote, or hub ids; NAME is what requests call it, by default its composition's",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, for this machine"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one without Ray; default: 8000")
    parser.add_argument(
        "--num-replicas",
        type=int,
        default=1,
        metavar="N",
        help="engines on Ray; 0 is one in this process, without Ray; default: 1",
    )
    parser.add_argument("--num-cpus", type=float, help="of each engine, and its threads; default: all / N")
    parser.add_argument("--num-gpus", type=float, default=0, help="of each engine; default: 0")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: what the files hold")
    parser.add_argument("--api-key-file", metavar="FILE", help="lines NAME:KEY; without keys everybody may ask")
    parser.add_argument("--max-running", type=int, default=16, metavar="N", help="answers at a time; default: 16")
    parser.add_argument("--max-waiting", type=int, default=128, metavar="N", help="requests may wait; default: 128")
    parser.add_argument("--max-cache-tokens", type=int, default=65_536, metavar="N", help="default: 65536")
    parser.add_argument("--drain", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    parser.add_argument(
        "--onnx",
        dest="exports",
        action="append",
        default=[],
        metavar="DIR",
        help="run this export in place of the augmenter it was made from; may be repeated",
    )
    add_remote_argument(parser)
    parser.add_argument(
        "--selector",
        dest="selectors",
        action="append",
        default=[],
        metavar="NAME=WHAT",
        help="what chooses among a composition's augmenters for each request: package.module:function, or a file that "
        "LearnedSelector.save wrote",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code.
    """
    from calm_graph.serve.run import serve_here, serve_on_ray

    serve = serve_on_ray if options.num_replicas else serve_here
    serve(
        read_settings(options),
        host=options.host,
        port=options.port,
        on_ready=lambda address: _say(f"serving at {address}/v1 (Ctrl-C drains and ends)"),
        on_draining=lambda _: _say("no more requests; answering those under way"),
    )
    return 0


def read_settings(options: argparse.Namespace) -> ServeSettings:
    """Return the settings of the command line.

    Raises:
        DeclarationError: One of them is out of range.
    """
    from calm_graph.serve.settings import ServeSettings

    engine = {name: getattr(options, name) for name in ("max_running", "max_waiting", "max_cache_tokens")}
    return ServeSettings.parse(
        {
            "checkpoints": options.checkpoints,
            "registries": options.registry,
            "exports": options.exports,
            "remotes": options.remotes,
            "selectors": dict(pair.partition("=")[::2] for pair in options.selectors),
            "dtype": options.dtype,
            "num_replicas": options.num_replicas,
            "num_cpus": options.num_cpus or max(1, (os.cpu_count() or 1) // max(1, options.num_replicas)),
            "num_gpus": options.num_gpus,
            "engine": engine,
            "http": {"api_keys_file": options.api_key_file},
            "drain_s": options.drain,
        },
        where="command line",
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
