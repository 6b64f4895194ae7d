"""Run a benchmark by name; its last line is the result as JSON, and the exit code is 0 when the bar holds."""

from __future__ import annotations

import argparse
import ast
import importlib
from pathlib import Path

from benchmarks.bar import Bar

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the benchmarks: the modules of this folder that define `measure()`."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if _defines_measure(path))


def measure(name: str) -> Bar:
    """Run one benchmark.

    Args:
        name: One of `names()`.

    Returns:
        Its result.
    """
    bar: Bar = importlib.import_module(f"benchmarks.{name}").measure()
    return bar


def main() -> int:
    """Run what the command line names.

    Returns:
        0 when every bar holds, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=names(), metavar="NAME", help="the benchmark")
    parser.add_argument("--list", action="store_true", help="list the names and leave")
    parser.add_argument("--all", action="store_true", help="run them all")
    options = parser.parse_args()
    if options.list:
        for name in names():
            summary = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text("utf-8"))) or ""
            print(f"{name:<18} {summary.partition(chr(10))[0]}")
        return 0
    if not options.all and options.name is None:
        parser.error("give a NAME, --list or --all")
    bars = []
    for name in names() if options.all else [options.name]:
        bars.append(measure(name))
        print(bars[-1].json(), flush=True)
    return 0 if all(bar.holds for bar in bars) else 1


def _defines_measure(path: Path) -> bool:
    if path.stem.startswith("_"):
        return False
    tree = ast.parse(path.read_text("utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree.body)


if __name__ == "__main__":
    raise SystemExit(main())
