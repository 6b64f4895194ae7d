from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import calm_graph
from calm_graph.cli import main
from tests.plan.cards import card

HEAD = "from calm_graph import Augmenter, Composition, every\n"


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """A folder of cards that nothing else knows."""
    folder = tmp_path / "cards"
    folder.mkdir()
    for made in (card("cli-anchor", 22, 96, 6), card("cli-prices", 12, 64)):
        (folder / f"{made.name}.json").write_text(made.model_dump_json(), "utf-8")
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    path = tmp_path / "desk.py"
    path.write_text(
        HEAD + "composition = Composition(name='desk', anchor='cli-anchor', augmenters=[Augmenter('cli-prices')])\n"
    )
    return path


@pytest.fixture
def wrong(desk: Path) -> Path:
    path = desk.with_name("wrong.py")
    path.write_text(
        desk.read_text().replace(
            "Augmenter('cli-prices')", "Augmenter('cli-prises'), Augmenter('cli-prices', attach=every(99))"
        )
    )
    return path


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cards of --registry out of the registry that other tests use."""
    import registry
    from calm_graph.plan import graph

    fresh = registry.Registry(registry.BUILT_IN)
    monkeypatch.setattr(registry, "registry", fresh)
    monkeypatch.setattr(graph, "default_registry", fresh)


def test_check_shows_the_table(desk: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(desk), "--registry", str(cards)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{desk}: ok\n")
    assert "3->7 7->14 11->21" in out


def test_check_shows_every_problem(wrong: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(wrong), "--registry", str(cards)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{wrong}: 2 problems",
        "  composition.augmenters[0].name: got 'cli-prises', which the registry does not know; nearest: 'cli-prices'",
        "  composition.augmenters[1].attach.step: got 99, but augmenter 'cli-prices' has only 12 layers; "
        "use every(12) or less",
    ]


def test_check_for_programs(desk: Path, wrong: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(desk), "--json", "--registry", str(cards)]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(desk), "ok": True, "problems": [], "notes": []}
    assert main(["check", str(wrong), "--json", "--registry", str(cards)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert [problem["path"] for problem in found["problems"]] == [
        "composition.augmenters[0].name",
        "composition.augmenters[1].attach.step",
    ]


def test_describe(desk: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(desk), "--registry", str(cards)]) == 0
    assert "at 1024 tokens already read" in capsys.readouterr().out
    assert main(["describe", str(desk), "--json", "--context", "0", "--registry", str(cards)]) == 0
    found = json.loads(capsys.readouterr().out)
    # Three attachments of C D + 4 D^2 + C + D.
    assert found["num_trainable_parameters"] == 3 * (64 * 96 + 4 * 96 * 96 + 64 + 96)
    assert [run["name"] for run in found["runs"]] == ["cli-prices", "cli-anchor"]


def test_draw(desk: Path, cards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graph.svg"
    assert main(["draw", str(desk), "-o", str(out), "--registry", str(cards)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text("utf-8").startswith("<svg")
    assert main(["draw", str(desk), "-o", str(tmp_path / "graph.png"), "--registry", str(cards)]) == 1
    assert "can be drawn" in capsys.readouterr().err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "Augmenter" in json.loads(capsys.readouterr().out)["$defs"]


def test_a_checkpoint_is_checked_with_its_own_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [card("own-anchor", 4), card("own-prices", 4)]
    composition = {"name": "desk", "anchor": "own-anchor", "augmenters": [{"name": "own-prices"}]}
    models = {made.name: made.model_dump(mode="json") for made in cards}
    (tmp_path / "composition.json").write_text(json.dumps({"composition": composition, "models": models}))
    assert main(["check", str(tmp_path)]) == 0
    assert "own-prices" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["chek"], [], ["check"], ["describe", "x.py", "--context", "-1"]])
def test_wrong_usage_leaves_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_registry_folder_that_is_not_there(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(desk), "--registry", "nowhere"]) == 1
    assert capsys.readouterr().err == "nowhere: no such folder of cards\n"


@pytest.mark.parametrize("command", ["check", "describe", "draw", "schema"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"examples:\n  calm-graph {command}" in capsys.readouterr().out


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, check=False
    )


def test_none_of_it_imports_torch(desk: Path, cards: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from calm_graph.cli import main\n"
        "desk, cards, out = sys.argv[1:]\n"
        "assert main(['check', desk, '--registry', cards]) == 0\n"
        "assert main(['describe', desk]) == 0\n"
        "assert main(['draw', desk, '-o', out]) == 0\n"
        "assert main(['schema']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run_python(code, str(desk), str(cards), str(tmp_path / "graph.svg"))
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_networkx() -> None:
    code = "import sys, calm_graph\nassert not {'torch', 'transformers', 'networkx'} & set(sys.modules)\n"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert all(hasattr(calm_graph, name) for name in calm_graph.__all__)
