"""What several commands share: the arguments that name a composition, and reading it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calm_graph.errors import InputError

if TYPE_CHECKING:
    from calm_graph.plan.graph import Plan

Subparsers = argparse._SubParsersAction  # argparse gives its type no public name


def add_command(
    subparsers: Subparsers[argparse.ArgumentParser], name: str, *, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        subparsers: Where to.
        name: What is typed.
        summary: One sentence, without the full stop.
        examples: Command lines, one a line.

    Returns:
        Its parser, to add arguments to; `set_defaults(run=...)` names the function that gets them.
    """
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add FILE."""
    parser.add_argument("file", metavar="FILE", help="a .py, .json or .yaml file, or the folder of a checkpoint")


def add_columns_argument(parser: argparse.ArgumentParser) -> None:
    """Add --columns."""
    parser.add_argument(
        "--columns",
        metavar="KEY=COLUMN,...",
        help="where the rows have their keys, such as prompt=question,completion=answer (default: under their names)",
    )


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what commands share that run models over rows without training them."""
    add_columns_argument(parser)
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens per row (default: the anchor's context)")
    parser.add_argument(
        "--long-rows", choices=("error", "skip", "cut"), default="error", help="as in training (default: error)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows run at once (default: 8)")


def read_row_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_row_arguments` asked for, under the names that the library's functions have for it.

    Raises:
        InputError: A part of --columns is not `KEY=COLUMN`.
    """
    names = ("max_length", "long_rows", "batch_size")
    return {"columns": read_columns(options.columns), **{name: getattr(options, name) for name in names}}


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_show_argument(parser: argparse.ArgumentParser) -> None:
    """Add --show, of commands that take long."""
    parser.add_argument("--show", choices=("auto", "plain", "none"), default="auto", help="how progress is shown")


def add_remote_argument(parser: argparse.ArgumentParser) -> None:
    """Add --remote."""
    parser.add_argument(
        "--remote",
        dest="remotes",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="let this service (see serve-augmenter) run the augmenter; its key is in the variable "
        "CALM_GRAPH_REMOTE_KEY; may be repeated",
    )


def read_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of FILE; the cards that a checkpoint keeps count where the registry has none of that name.

    Raises:
        DeclarationError: The file cannot be read or its composition has problems; all are listed under the file's name.
    """
    from calm_graph.declare.files import load_composition, stored_cards
    from calm_graph.errors import DeclarationError
    from calm_graph.plan.graph import make_plan
    from registry import registry

    composition = load_composition(options.file)
    for card in stored_cards(options.file):
        if card.name not in registry:
            registry.add(card)
    try:
        return make_plan(composition)
    except DeclarationError as error:
        raise DeclarationError(error.problems, where=options.file) from error


def read_columns(text: str | None) -> dict[str, str] | None:
    """Return the columns of the command line.

    Args:
        text: `KEY=COLUMN,KEY=COLUMN`, or None.

    Returns:
        Key of a row -> column, or None.

    Raises:
        InputError: A part is not `KEY=COLUMN`.
    """
    if text is None:
        return None
    columns = {}
    for part in text.split(","):
        key, equals, column = part.partition("=")
        if not equals:
            raise InputError(f"--columns: got {part!r}, but KEY=COLUMN is needed, such as prompt=question")
        columns[key.strip()] = column.strip()
    return columns


def print_json(value: Any) -> None:
    """Print a value as JSON that people can read, too."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def read_changes(changes: Sequence[str]) -> dict[str, object]:
    """Return the settings of each `--set`.

    Args:
        changes: NAME=VALUE; a value is JSON (numbers, lists, null), else a text as it is.

    Returns:
        Name -> value; whether there are such settings is not looked at.

    Raises:
        InputError: One is not NAME=VALUE.
    """
    found: dict[str, object] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set: got {change!r}, but NAME=VALUE is needed, such as patience=3")
        found[name.strip().replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> object:
    """Read JSON (numbers, lists, null), else take the text as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
