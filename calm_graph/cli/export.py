"""`calm-graph export` and `calm-graph verify`: an augmenter as a folder that ONNX Runtime runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from calm_graph.cli.common import Subparsers, add_command, add_json_argument, print_json


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add export and verify."""
    parser = add_command(
        commands,
        "export",
        summary="export an augmenter to ONNX, up to the last layer that is read, and compare it with torch",
        examples="""
        calm-graph export gemma3-270m --layers 3,7,11 --out exports/gemma3
        calm-graph export gemma3-270m --layers 3,7,11 --precision int8 --out exports/gemma3-int8
        calm-graph chat runs/helpdesk --onnx exports/gemma3-int8
        """,
    )
    parser.add_argument("name", metavar="NAME", help="card of a model that runs in torch")
    parser.add_argument(
        "--layers", type=_layers, required=True, metavar="I,J,...", help="layers that are read, 0-based"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--reading", choices=("prompt", "stream"), help="default: stream, of an encoder prompt")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8", "int4"), default="fp32", help="of the weights (default: fp32)"
    )
    parser.add_argument(
        "--from", dest="traced", metavar="DIR", help="take the graph of this fp32 export instead of tracing again"
    )
    _add_common(parser)
    parser.set_defaults(run=export)

    parser = add_command(
        commands,
        "verify",
        summary="measure an exported augmenter against the torch model it came from",
        examples="calm-graph verify exports/gemma3-int8\ncalm-graph verify exports/gemma3-int8 --min-cosine 0.999",
    )
    parser.add_argument("folder", metavar="DIR", help="a folder that export wrote")
    _add_common(parser)
    parser.set_defaults(run=verify)


def export(options: argparse.Namespace) -> int:
    """Export, and print what was measured; the exit code is 130 after Ctrl-C."""
    _need_export_packages()
    from calm_graph.augmenters.onnx_export import export_augmenter

    try:
        card = export_augmenter(
            options.name,
            layers=options.layers,
            out=options.out,
            reading=options.reading,
            precision=options.precision,
            traced=options.traced,
            min_cosine=options.min_cosine,
            show=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    assert card.onnx is not None
    if options.json:
        print_json(card.model_dump(mode="json"))
        return 0
    size = f"{card.onnx.size_bytes / 1e6:,.1f} MB, {card.onnx.size_bytes / card.onnx.replaces_bytes:.3f} of float32"
    print(f"{options.out}: {card.name}, {size}\n{_table(card.onnx.cosine, card.onnx.relative_error)}")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Measure again, and print what was found; the exit code is 1 beyond tolerance."""
    _need_export_packages()
    from calm_graph.augmenters.onnx_export import verify_export

    card, parity = verify_export(options.folder)
    assert card.onnx is not None
    problems = parity.problems(card.onnx.precision, options.min_cosine)
    if options.json:
        measured = {"cosine": parity.cosine, "relative_error": parity.relative_error}
        print_json({"card": card.name, "ok": not problems, "problems": problems, **measured})
    else:
        print(f"{options.folder}: {card.name}\n{_table(parity.cosine, parity.relative_error)}")
        for problem in problems:
            print(problem, file=sys.stderr)
    return 1 if problems else 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-cosine", type=float, metavar="X", help="refuse below this mean cosine with torch (default: by precision)"
    )
    add_json_argument(parser)


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, but layer numbers with commas are needed: 3,7,11") from None


def _need_export_packages() -> None:
    from calm_graph.errors import OnnxError

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxError(f"exporting needs {error.name}: pip install 'calm-graph[export]'") from error


def _table(cosine: Mapping[int, float], relative_error: Mapping[int, float]) -> str:
    return "\n".join(
        f"  layer {layer:>3}  cosine {found:.6f}  largest relative error {relative_error[layer]:.2e}"
        for layer, found in cosine.items()
    )
