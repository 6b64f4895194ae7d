"""Reading a composition from a file: Python, JSON, YAML, or the folder of a trained checkpoint."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calm_graph.declare.base import problems_of
from calm_graph.declare.composition import Composition
from calm_graph.errors import DeclarationError, Problem
from registry import ModelCard
from registry.remote import without_access

CHECKPOINT_FILE = "composition.json"
"""The file of a checkpoint's folder that holds its declaration, under the key `composition`."""


def load_composition(path: str | Path) -> Composition:
    """Read a composition.

    Args:
        path: A `.py` file with a module-level `composition` (or a single Composition under any name), a `.json` or
            `.yaml` file with its fields, or the folder (or the composition.json) of a checkpoint. A Python file is run.

    Returns:
        The composition; its names and layers are not checked yet (`make_plan` does).

    Raises:
        DeclarationError: There is no such file, it cannot be read, or it declares no valid composition.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / CHECKPOINT_FILE).is_file():
            raise DeclarationError(
                [_problem(f"is a folder without {CHECKPOINT_FILE}, so no checkpoint; name a file")], where=str(path)
            )
        path = path / CHECKPOINT_FILE
    if not path.is_file():
        raise DeclarationError([_problem("no such file")], where=str(path))
    if path.suffix == ".py":
        return _from_python(path)
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise DeclarationError(
            [_problem(f"got a {path.suffix or 'nameless'} file, but .py, .json, .yaml or a checkpoint is needed")],
            where=str(path),
        )
    data = read_fields(path)
    if isinstance(data, dict) and isinstance(data.get("composition"), dict):
        data = data["composition"]
    return Composition.parse(data, where=str(path))


def stored_cards(path: str | Path) -> tuple[ModelCard, ...]:
    """Return the cards that a checkpoint keeps of its frozen models; none when the path is no checkpoint.

    A service that one of them names is not asked because of that.

    Args:
        path: A checkpoint's folder or its composition.json, or any other file.

    Raises:
        DeclarationError: The checkpoint's cards cannot be read.
    """
    path = Path(path)
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    if file.name != CHECKPOINT_FILE or not file.is_file():
        return ()
    data = read_fields(file)
    models = data.get("models") if isinstance(data, dict) else None
    try:
        return tuple(without_access(ModelCard.model_validate(card)) for card in (models or {}).values())
    except ValidationError as error:
        raise DeclarationError(problems_of(error, root="models"), where=str(file)) from error


def run_file(path: Path, *, root: str = "composition") -> dict[str, Any]:
    """Run a Python file that declares something.

    Args:
        path: The file.
        root: What it declares, for errors.

    Returns:
        Its module-level names and their values.

    Raises:
        DeclarationError: It raised an error.
    """
    # The file's own folder is importable while it runs, as `python file.py` would have it.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        return runpy.run_path(str(path), run_name=f"calm_graph_{root}")
    except ValidationError as error:
        declared = error.title[:1].lower() + error.title[1:]
        problems = problems_of(error, root=f"line {_line(error, path)}, {declared}")
        raise DeclarationError(problems, where=str(path)) from error
    except SyntaxError as error:
        raise DeclarationError([Problem(root, f"line {error.lineno}: {error.msg}")], where=str(path)) from error
    except Exception as error:  # whatever the user's file raises is told as the file's fault
        message = f"line {_line(error, path)} raised {type(error).__name__}: {error}"
        raise DeclarationError([Problem(root, message)], where=str(path)) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))


def read_fields(path: Path, *, root: str = "composition") -> Any:
    """Read a JSON or YAML file.

    Args:
        path: The file; `.json` is JSON, anything else YAML.
        root: What it declares, for errors.

    Returns:
        What it holds.

    Raises:
        DeclarationError: It cannot be read as what it should be.
    """
    try:
        return _from_json(path) if path.suffix == ".json" else _from_yaml(path)
    except _UnreadableError as error:
        raise DeclarationError([Problem(root, str(error))], where=str(path)) from error


def _from_python(path: Path) -> Composition:
    names = run_file(path)
    chosen = names.get("composition")
    if isinstance(chosen, Composition):
        return chosen
    if chosen is not None:
        raise DeclarationError(
            [_problem(f"`composition` is a {type(chosen).__name__}, but a Composition is needed")],
            where=str(path),
        )
    found = {name: value for name, value in names.items() if isinstance(value, Composition)}
    if not found:
        raise DeclarationError(
            [_problem("declares no Composition; write `composition = Composition(...)` at its top level")],
            where=str(path),
        )
    if len({id(value) for value in found.values()}) > 1:
        raise DeclarationError(
            [_problem(f"declares several: {', '.join(found)}; name the one that is meant `composition`")],
            where=str(path),
        )
    return next(iter(found.values()))


def _line(error: Exception, path: Path) -> int | str:
    """Return the line of the user's file that was running when the error came."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return lines[-1] if lines and lines[-1] is not None else "?"


class _UnreadableError(Exception):
    """A file is not what its ending says."""


def _from_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _UnreadableError(f"not readable as JSON: {error}") from error


def _from_yaml(path: Path) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise _UnreadableError("reading YAML needs PyYAML: pip install pyyaml; or write JSON") from error
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _UnreadableError(f"not readable as YAML: {error}") from error


def _problem(message: str) -> Problem:
    return Problem("composition", message)
