"""`calm-graph export` and `verify`, and an export in the place of an augmenter."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calm_graph import Augmenter, every
from calm_graph.cli import main
from registry import registry
from tests.model.pico import Zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", seed=1)
    zoo.add("other", "llama", tokenizer="spaces", seed=2, num_hidden_layers=1)
    cards = zoo.folder / "cards"
    cards.mkdir()
    for name in ("anchor", "other"):
        (cards / f"{name}.json").write_text(json.dumps({"name": name, "source": f"folder:../{name}"}))
    zoo.compose(Augmenter("other", attach=every(1))).save_pretrained(zoo.folder / "trained")
    return zoo


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))


@pytest.fixture(scope="module")
def cards(zoo: Zoo) -> list[str]:
    return ["--registry", str(zoo.folder / "cards")]


def test_export_verify_and_generate(zoo: Zoo, cards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = zoo.folder / "exported"
    assert main(["export", "other", "--layers", "0", "--out", str(folder), *cards]) == 0
    printed = capsys.readouterr()
    assert "other: 1 blocks, about" in printed.err and "comparing with torch" in printed.err
    assert f"{folder}: other-onnx-fp32, " in printed.out and "layer   0  cosine 1.000000" in printed.out

    arguments = ["--from", str(folder), "--precision", "int8", "--json"]
    small = zoo.folder / "int8"
    assert main(["export", "other", "--layers", "0", "--out", str(small), *arguments, *cards]) == 0
    assert json.loads(capsys.readouterr().out)["onnx"]["precision"] == "int8"

    assert main(["verify", str(small), "--json", *cards]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["ok"] and 0.98 < measured["cosine"]["0"] < 1
    assert main(["verify", str(small), "--min-cosine", "1", *cards]) == 1
    assert "layer 0: cosine 0.99" in capsys.readouterr().err

    ask = ["generate", str(zoo.folder / "trained"), "price of", "--max-new-tokens", "4", "--json", *cards]
    texts = []
    for extra in ([], ["--onnx", str(folder)]):
        assert main([*ask, *extra]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_mistakes(zoo: Zoo, cards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "other", "--layers", "0,5", "--out", str(tmp_path / "out"), *cards]) == 1
    assert capsys.readouterr().err == "layers: got 5, but 'other' has layers 0..0\n"
    with pytest.raises(SystemExit):
        main(["export", "other", "--layers", "first", "--out", str(tmp_path / "out"), *cards])
    assert "got 'first', but layer numbers with commas are needed: 3,7,11" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), *cards]) == 1
    assert "has no card.json of an ONNX export" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing(zoo: Zoo, cards: list[str], tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A real process and a real signal, while the folder that export writes into is there."""
    program = "import sys; from calm_graph.cli import main; sys.exit(main())"
    arguments = ["export", "other", "--layers", "0", "--out", str(tmp_path / "out"), *cards]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while not any(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in error
    assert [*tmp_path.iterdir()] == []
