"""The rules of the house, read from the source: who may import whom, and which dependency has which doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# A room imports only rooms of a lower floor. The package root is on top: it re-exports, lazily.
FLOORS = {
    "calm_graph.errors": 0,
    "calm_graph.interrupts": 0,
    "calm_graph.progress": 0,
    "registry": 1,
    "calm_graph.declare": 2,
    "calm_graph.augmenters": 2,
    "calm_graph.plan": 3,
    "calm_graph.model": 4,
    "calm_graph.data": 5,
    "calm_graph.generate": 5,
    "calm_graph.autoclasses": 5,
    "calm_graph.states": 6,
    "calm_graph.train": 7,
    "calm_graph.evaluate": 8,
    "calm_graph.http": 8,
    "calm_graph.serve": 9,
    "calm_graph.cli": 10,
    "calm_graph.__main__": 11,
    "calm_graph": 11,
}
# Path prefixes that may import the dependency at all.
DOORS = {
    "networkx": ("calm_graph/plan/",),
    "ray": (
        "calm_graph/data/ray_data.py",
        "calm_graph/states/precompute.py",
        "calm_graph/train/ray_",
        "calm_graph/serve/",
    ),
    "fastapi": ("calm_graph/http/", "calm_graph/serve/"),
    "uvicorn": ("calm_graph/serve/",),
    "onnxruntime": ("calm_graph/augmenters/onnx_",),
    "sacrebleu": ("calm_graph/evaluate/measures/metrics.py",),
    "lm_eval": ("calm_graph/evaluate/lm_eval_model.py",),
    "httpx2": ("registry/service.py", "calm_graph/serve/load/client.py"),
    "peft": ("calm_graph/evaluate/baselines/lora.py",),
    "pickle": (),
}
WITHOUT_TORCH = ("registry", "calm_graph.declare", "calm_graph.plan", "calm_graph.errors")


class Import(NamedTuple):
    """One imported module (for `from a import b`: a.b when that is a module of ours, else a)."""

    path: str
    line: int
    module: str
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(path: Path) -> Iterator[Import]:
    where = path.relative_to(ROOT).as_posix()

    def walk(node: ast.AST, level: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(where, child.lineno, alias.name, level)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{where}:{child.lineno}: relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    ours = child.module.split(".")[0] in ("calm_graph", "registry")
                    yield Import(where, child.lineno, full if ours and is_module(full) else child.module, level)
            else:
                deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(child)
                yield from walk(child, level and not deferred)

    yield from walk(ast.parse(path.read_text()), True)


def room(module: str) -> str | None:
    """The longest prefix of `module` that has a floor; None for foreign modules."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    found = next((name for name in names if name in FLOORS), None)
    if found == "calm_graph" and module != "calm_graph":
        pytest.fail(f"{module} is in no room of FLOORS")
    return found


SOURCES = sorted(path for package in ("registry", "calm_graph") for path in (ROOT / package).rglob("*.py"))
ALL = [found for path in SOURCES for found in imports(path)]


def test_the_sources_are_found() -> None:
    assert {room(module_name(path)) for path in SOURCES} >= {"registry", "calm_graph.declare", "calm_graph.train"}
    assert ALL


def test_imports_only_go_down() -> None:
    wrong = []
    for found in ALL:
        target, own = room(found.module), room(module_name(ROOT / found.path))
        assert own is not None
        if target is not None and target != own and FLOORS[target] >= FLOORS[own]:
            wrong.append(f"{found} (floor {FLOORS[target]}) from floor {FLOORS[own]}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_the_package_root() -> None:
    wrong = [str(found) for found in ALL if found.module == "calm_graph"]
    assert not wrong, "\n".join(wrong)


def test_no_import_circles_between_modules() -> None:
    """Modules of one room may import each other, but not in a circle.

    Imports inside functions and for types count as well, but for those of `from_pretrained` and `save_pretrained`:
    they are methods of the class that they make and write.
    """
    edges: dict[str, set[str]] = {module_name(path): set() for path in SOURCES}
    for found in ALL:
        target = found.module
        is_method = found.path == "calm_graph/model/pretrained.py"
        if not is_method and target in edges and target != module_name(ROOT / found.path):
            edges[module_name(ROOT / found.path)].add(target)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_no_torch_at_module_level_where_declarations_are_checked() -> None:
    heavy = ("torch", "transformers", "matplotlib")
    wrong = [
        str(found)
        for found in ALL
        if found.at_module_level
        and found.module.split(".")[0] in heavy
        and room(module_name(ROOT / found.path)) in WITHOUT_TORCH
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dependency", DOORS)
def test_heavy_dependencies_have_few_doors(dependency: str) -> None:
    wrong = [
        str(found)
        for found in ALL
        if found.module.split(".")[0] == dependency and not found.path.startswith(DOORS[dependency] or ("-",))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_checks_themselves_see_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_laws.ROOT", tmp_path)
    source = tmp_path / "calm_graph/plan/wrong.py"
    source.parent.mkdir(parents=True)
    (tmp_path / "calm_graph/model").mkdir()
    source.write_text("import torch\nfrom calm_graph import model\ndef f():\n    import transformers\n")
    assert [(i.module, i.at_module_level) for i in imports(source)] == [
        ("torch", True),
        ("calm_graph.model", True),
        ("transformers", False),
    ]
