"""`calm-graph join` and `fit-selector`, and what they write in use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calm_graph import Augmenter, every
from calm_graph.cli import main
from calm_graph.generate.selector import Prompt
from registry import registry
from tests.evaluate.conftest import write_rows
from tests.model.pico import Zoo

BOTH = """
from calm_graph import Augmenter, Composition, every

parts = [Augmenter(name, attach=every(2)) for name in ("one", "two")]
composition = Composition(name="both", anchor="anchor", augmenters=parts)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with cards, two trained compositions and rows."""
    folder = tmp_path_factory.mktemp("place")
    zoo = Zoo(folder / "models")
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("one", "qwen2", tokenizer="bytes", seed=2)
    zoo.add("two", "llama", tokenizer="spaces", seed=3)
    for name in ("anchor", "one", "two"):
        (zoo.folder / f"{name}.json").write_text(json.dumps({"name": name, "source": f"folder:{name}"}))
    for name in ("one", "two"):
        zoo.compose(Augmenter(name, attach=every(2))).save_pretrained(folder / "runs" / name)
    (folder / "both.py").write_text(BOTH)
    rows = [{"prompt": f"price of {n} is", "completion": f" {3 * n}"} for n in range(12)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "keep.jsonl", [{"text": f"Plain words, number {n}"} for n in range(6)])
    return folder


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    monkeypatch.chdir(made)
    return made


def test_joined_and_chosen_for_each_prompt(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = ["--registry", "models"]
    assert main(["join", "both.py", "runs/one", "runs/two", "--out", "runs/both", *cards]) == 0
    assert "runs/both: both, of runs/one and runs/two" in capsys.readouterr().out
    fit = ["fit-selector", "runs/both", "--data", "rows.jsonl", "--keep", "keep.jsonl", *cards, "--show", "none"]
    assert main([*fit, "--out", "gate.safetensors", "--layer", "1"]) == 0
    printed = capsys.readouterr().out
    assert "one: needed by " in printed and " of 4 held-out rows, " in printed
    assert "gate.safetensors: looks after layer 1 of 'anchor'" in printed
    assert main([*fit, "--out", "gate.safetensors", "--json"]) == 0
    assert {*json.loads(capsys.readouterr().out)} == {"one", "two"}

    own = ["--prompt", "{prompt}", "--reference", "{completion}", "--metrics", "bits_per_byte", *cards]
    evaluate = ["evaluate", "rows.jsonl", *own, "--checkpoint", "runs/both", "--show", "none", "--out", "out"]
    chosen = ["--systems", "anchor,composed_selected", "--selector", "gate.safetensors"]
    assert main([*evaluate, *chosen]) == 0
    found = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["system"] for row in found] == ["anchor", "composed_selected"]
    assert main([*evaluate, "--systems", "composed_selected"]) == 1
    assert "composed_selected: what should choose?" in capsys.readouterr().err
    assert main([*evaluate, "--selector", "gate.safetensors"]) == 1
    assert "--selector: only for --systems composed_selected" in capsys.readouterr().err


def nobody(prompt: Prompt) -> list[str]:
    return []


def test_generate_and_chat_wake_those_that_are_chosen(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated(*options: str) -> str:
        command = ["generate", "runs/one", "price of 3 is", "--max-new-tokens", "12", "--json", "--registry", "models"]
        assert main([*command, *options]) == 0
        return str(json.loads(capsys.readouterr().out)["text"])

    alone = generated("--augmenter", "one=0")
    chosen = ("--selector", f"{__name__}:nobody")
    assert generated(*chosen) == alone != generated()
    # What is named is not asked about.
    assert generated(*chosen, "--augmenter", "one=1") == generated()
    lines = iter(["price of 3 is", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    talk = ["chat", "runs/one", "--max-new-tokens", "12", "--temperature", "0", "--registry", "models", *chosen]
    assert main(talk) == 0
    assert alone in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["join", "both.py", "runs/one", "--out", "x"], "runs/one: does not fit this composition: it lacks two@"),
        (["join", "both.py", "runs/one", "runs/one", "--out", "x"], "which one before it has too"),
        (["join", "both.py", "runs/none", "--out", "x"], "runs/none: there is no composition.json"),
        (["fit-selector", "runs/one", "--data", "rows.jsonl", "--out", "gate"], "--out: got gate, but the name of a"),
        (["generate", "runs/one", "so", "--selector", "none.safetensors"], "none.safetensors: is no selector"),
        (["fit-selector", "runs/one", "--data", "none.jsonl", "--out", "g.safetensors"], "none.jsonl"),
    ],
)
def test_one_clear_error(place: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str) -> None:
    assert main([*command, "--registry", "models"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("x").exists() and not Path("gate").exists() and not Path("g.safetensors").exists()
