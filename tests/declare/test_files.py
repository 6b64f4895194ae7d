from __future__ import annotations

import json
from pathlib import Path

import pytest

from calm_graph.declare.composition import Augmenter, Composition
from calm_graph.declare.files import load_composition, stored_cards
from calm_graph.errors import DeclarationError

DESK = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("prices")])
HEAD = "from calm_graph import Augmenter, Composition, every\n"
ONE = 'Composition(name="desk", anchor="anchor", augmenters=[Augmenter("prices")])\n'


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    "name, text",
    [
        ("desk.py", f"{HEAD}composition = {ONE}"),
        ("only.py", f"{HEAD}anything = {ONE}"),
        ("chosen.py", f"{HEAD}composition = {ONE}other = Composition(name='other', anchor='anchor')\n"),
        ("alias.py", f"{HEAD}first = {ONE}second = first\n"),
        ("desk.json", DESK.model_dump_json()),
        ("desk.yaml", "name: desk\nanchor: anchor\naugmenters:\n  - name: prices\n"),
        ("composition.json", json.dumps({"schema_version": 1, "composition": DESK.model_dump(mode="json")})),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    assert load_composition(write(tmp_path, name, text)) == DESK


def test_a_checkpoint_is_its_folder(tmp_path: Path) -> None:
    write(tmp_path, "composition.json", json.dumps({"composition": DESK.model_dump(mode="json")}))
    assert load_composition(tmp_path) == DESK
    assert stored_cards(tmp_path) == ()


def test_a_python_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "neighbour_of_desk.py", "ANCHOR = 'anchor'\n")
    text = f"{HEAD}from neighbour_of_desk import ANCHOR\ncomposition = Composition(name='desk', anchor=ANCHOR)\n"
    assert load_composition(write(tmp_path, "desk.py", text)).anchor == "anchor"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("desk.py", "x = 1\n", "declares no Composition; write `composition = Composition(...)` at its top level"),
        (
            "desk.py",
            f"{HEAD}a = {ONE}b = Composition(name='b', anchor='anchor')\n",
            "declares several: a, b; name the one",
        ),
        ("desk.py", "composition = {}\n", "`composition` is a dict, but a Composition is needed"),
        ("desk.py", "x = 1\n\ny = 1 / 0\n", "line 3 raised ZeroDivisionError: division by zero"),
        ("desk.py", "x = (\n", "line 1: '(' was never closed"),
        (
            "desk.py",
            f"{HEAD}\nAugmenter('prices', atach=4)\n",
            "line 3, augmenter.atach: unknown key; did you mean 'attach'?",
        ),
        ("desk.json", "{", "not readable as JSON"),
        ("desk.json", '{"name": "desk"}', "composition.anchor: is missing"),
        ("desk.toml", "", "got a .toml file, but .py, .json, .yaml or a checkpoint is needed"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(DeclarationError) as caught:
        load_composition(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: 1 problem\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="no such file"):
        load_composition(tmp_path / "desk.py")
    with pytest.raises(DeclarationError, match=r"is a folder without composition\.json, so no checkpoint"):
        load_composition(tmp_path)


def test_damaged_cards_of_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, "composition.json", json.dumps({"models": {"prices": {"name": "prices"}}}))
    with pytest.raises(DeclarationError, match=r"models\.source: is missing"):
        stored_cards(tmp_path)
