"""`calm-graph bench-serve`: how fast a server answers, at one load after another."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from calm_graph.cli.common import Subparsers, add_command, add_json_argument, print_json
from calm_graph.errors import InputError

if TYPE_CHECKING:
    from calm_graph.serve.load.parts import Load, LoadResult, Target

RESULT_FILE = "bench-serve.json"
PLOT_FILE = "bench-serve.png"
KEY_VARIABLE = "OPENAI_API_KEY"


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add bench-serve."""
    parser = add_command(
        commands,
        "bench-serve",
        summary="measure throughput and latency of a running OpenAI-compatible server, at one load after another",
        examples="""
        calm-graph bench-serve http://127.0.0.1:8000
        calm-graph bench-serve http://127.0.0.1:8000 --concurrency 1,4,16 --num-requests 64 --out bench
        calm-graph bench-serve http://127.0.0.1:8000 --rate 1,2,4 --prompts prompts.txt --chat
        """,
    )
    parser.add_argument("url", metavar="URL", help="of the server, with or without /v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    loads = parser.add_mutually_exclusive_group()
    loads.add_argument(
        "--concurrency", type=_list_of(int), metavar="N,N", help="requests under way together; default: 1,2,4,8"
    )
    loads.add_argument("--rate", type=_list_of(float), metavar="R,R", help="or requests a second, at random times")
    parser.add_argument(
        "--num-requests", type=int, metavar="N", help="of each load; default: 4 for each under way, at least 16"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts, one a line; or *.jsonl with a field `prompt`; default: made up, of all lengths",
    )
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of each answer; default: 64")
    parser.add_argument("--chat", action="store_true", help="ask for chat completions")
    parser.add_argument(
        "--min-tokens",
        type=int,
        metavar="N",
        help="of each answer; default: as many, so that all are of one length; 0 for servers without this field",
    )
    parser.add_argument("--seed", type=int, default=0, help="of made-up prompts and random times; default: 0")
    parser.add_argument("--api-key", metavar="KEY", help=f"default: ${KEY_VARIABLE}, if it is set")
    parser.add_argument("--out", metavar="DIR", help=f"write {RESULT_FILE} and {PLOT_FILE} here")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put the loads on the server.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code: 0, 1 when a request failed, or 130 after Ctrl-C.

    Raises:
        InputError: Answers of this length leave no room for prompts.
    """
    import asyncio

    from calm_graph.serve.load.client import find_target
    from calm_graph.serve.load.report import plot, print_table

    loads = _loads(options)
    own_prompts = None if options.prompts is None else read_prompts(Path(options.prompts))
    if options.out is not None:
        _make_folder(Path(options.out))
    key = options.api_key or os.environ.get(KEY_VARIABLE)
    target = asyncio.run(find_target(options.url, model=options.model, api_key=key, chat=options.chat))
    if own_prompts is None and target.context_length <= options.max_tokens:
        raise InputError(f"max-tokens: got {options.max_tokens}, but the context is {target.context_length} tokens")
    results = _measure(target, loads, own_prompts)
    is_whole = len(results) == len(loads) and results[-1].is_whole
    found = {
        "url": target.url,
        "model": target.model,
        "chat": target.chat,
        "max_tokens": options.max_tokens,
        "min_tokens": loads[0].min_tokens,
        "prompts": options.prompts or "made up",
        "seed": options.seed,
        "is_whole": is_whole,
        "loads": [result.record() for result in results],
    }
    if options.json:
        print_json(found)
    else:
        print_table(results)
    if options.out is not None:
        folder = Path(options.out)
        (folder / RESULT_FILE).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
        plot(results, folder / PLOT_FILE)
        print(f"{folder / RESULT_FILE}, {folder / PLOT_FILE}", file=sys.stderr)
    if not is_whole:
        print("interrupted; this is what was measured until then", file=sys.stderr)
        return 130
    return 1 if any(result.errors for result in results) else 0


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file.

    Args:
        path: One a line, or JSONL with a field `prompt`.

    Returns:
        At least one.

    Raises:
        InputError: It cannot be read, a line is none, or there is none.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if path.suffix != ".jsonl":
        prompts = lines
    else:
        prompts = []
        for number, line in enumerate(lines, 1):
            try:
                prompts.append(str(json.loads(line)["prompt"]))
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path}: row {number}: an object with a field `prompt` is needed") from None
    if not prompts:
        raise InputError(f"{path}: has no prompt; one a line is needed")
    return prompts


def _loads(options: argparse.Namespace) -> list[Load]:
    from calm_graph.serve.load.parts import Load

    min_tokens = options.max_tokens if options.min_tokens is None else options.min_tokens
    common = {"max_tokens": options.max_tokens, "min_tokens": min_tokens, "seed": options.seed}
    if options.rate is not None:
        count = 16 if options.num_requests is None else options.num_requests
        return [Load(rate=rate, num_requests=count, **common) for rate in options.rate]
    return [
        Load(
            concurrency=each,
            num_requests=max(16, 4 * each) if options.num_requests is None else options.num_requests,
            **common,
        )
        for each in options.concurrency or (1, 2, 4, 8)
    ]


def _measure(target: Target, loads: list[Load], own_prompts: list[str] | None) -> list[LoadResult]:
    """Run one load after another, until Ctrl-C."""
    import asyncio

    from calm_graph.interrupts import stop_on_signals
    from calm_graph.serve.load.report import watching
    from calm_graph.serve.load.run import ragged_prompts, run_load

    results: list[LoadResult] = []
    with stop_on_signals() as stop, watching() as watch:
        for number, load in enumerate(loads):
            prompts: Iterator[str]
            if own_prompts is None:
                # Made anew for each load: a server that keeps the prompts of one would answer the next one sooner. A
                # token has at least one character, but the anchor may put some before the text.
                longest = (target.context_length - load.max_tokens) * 3 // 4
                prompts = ragged_prompts(1000 * load.seed + number, longest=longest)
            else:
                prompts = cycle(own_prompts)
            results.append(asyncio.run(run_load(target, load, prompts, on_reply=watch(load), stop=stop)))
            if stop.requested:
                break
    return results


def _list_of(kind: type[int] | type[float]) -> Callable[[str], list[int | float]]:
    def parse(text: str) -> list[int | float]:
        try:
            values = [kind(each) for each in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(0 < value < float("inf") for value in values):
            raise argparse.ArgumentTypeError(f"got {text!r}, but numbers above 0 with commas between are needed")
        return values

    return parse


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {folder} cannot be made: {error.strerror}") from None
