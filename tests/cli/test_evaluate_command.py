"""`calm-graph evaluate`: from a line to a report, and the list without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calm_graph import TrainSettings, fit
from calm_graph.cli import main
from examples.arithmetic.compositions import garden
from tests.evaluate.conftest import write_rows

TRAINED = Path(__file__).parents[2] / "examples/arithmetic/trained"


def test_a_task_of_ones_own_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": f"{n}+{2 * n}=", "a": str(3 * n)} for n in range(3, 33)]
    data = write_rows(tmp_path / "sums.jsonl", rows)
    command = ["evaluate", data, "--prompt", "{q}", "--reference", "{a}", "--metrics", "accuracy,bits_per_byte"]
    command += ["--answer", "packed", "--max-new-tokens", "3", "--checkpoint", str(TRAINED), "--show", "none"]
    command += ["--systems", "anchor,composed,augmenter", "--limit", "12", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "own, sums: accuracy" in table and "augmenter_demo-prices-garden" in table
    found = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    values = {(row["system"], row["metric"]): row["value"] for row in found}
    assert values["anchor", "accuracy"] >= 90 and values["composed", "accuracy"] >= 90
    assert values["augmenter_demo-prices-kitchen", "accuracy"] == 0
    assert {row["count"] for row in found} == {12}
    assert (tmp_path / "out/report.html").is_file() and (tmp_path / "out/report.md").is_file()
    # Another system later: the earlier results stay.
    assert main([*command, "--systems", "composed_without"]) == 0
    table = capsys.readouterr().out
    assert "composed - anchor: " in table and "composed - composed_without_demo-prices-garden: " in table
    systems = {row["system"] for row in json.loads((tmp_path / "out/results.json").read_text())["rows"]}
    assert {"anchor", "composed_without_demo-prices-garden", "composed_without_demo-prices-kitchen"} <= systems


def test_the_list_needs_no_torch() -> None:
    program = (
        "import sys\nfrom calm_graph.cli import main\nassert main(['evaluate', '--list']) == 0\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for word in ("translation", "flores200", "humaneval", "chrf", "pass@1", "composed_without"):
        assert word in listed


CODE = ["code", "--checkpoint", "x"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "SUITE|FILE is missing"),
        (["translation"], "--checkpoint is missing"),
        (["translation", "--languages", "xx"], "--languages: got 'xx', but there is ace"),
        (["translation", "--prompt", "x"], "--prompt: only for a .jsonl"),
        (["translation", "--metrics", "accuracy"], "--metrics: task translation/flores200/ace has chrf"),
        (["translation", "--limit", "0"], "task.limit"),
        (["maths", "--data", "nowhere", "--checkpoint", "x"], "name the folder of the data with --data"),
        ([*CODE, "--set", "max_steps=9"], "--set: only for one that is trained, but got no --baselines"),
        (
            [*CODE, "--baselines", "merge", "--train-data", "x"],
            "--train-data: only for one that is trained, but got merge",
        ),
        (
            [*CODE, "--baselines", "lora", "--replace", "a=b"],
            "--replace: only for an ablation, but got lora",
        ),
        (
            [*CODE, "--baselines", "lora", "--merge-base", "a"],
            "--merge-base: only for merge, but got lora",
        ),
        (
            [*CODE, "--baselines", "merge", "--learning-rates", "lora=1"],
            "--learning-rates: got 'lora', but there is none",
        ),
    ],
)
def test_one_clear_error(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_system_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "x.jsonl", [{"q": "1", "a": "2"}])
    own = ["--prompt", "{q}", "--reference", "{a}", "--metrics", "accuracy", "--systems", "compose"]
    assert main(["evaluate", data, *own, "--checkpoint", "nowhere", "--out", str(tmp_path)]) == 1
    assert "systems: got 'compose', but there are anchor" in capsys.readouterr().err


def test_baselines_are_trained_and_evaluated_beside_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n}+{2 * n}=", "completion": str(3 * n)} for n in range(3, 33)]
    data, run = write_rows(tmp_path / "sums.jsonl", rows), tmp_path / "run"
    settings = TrainSettings(max_steps=3, batch_size=4, warmup_steps=1, device="cpu")
    fit(garden, data=data, eval_data=rows[:4], out=run, settings=settings, show="none")
    command = ["evaluate", data, "--prompt", "{prompt}", "--reference", "{completion}", "--metrics", "bits_per_byte"]
    command += ["--checkpoint", str(run), "--systems", "composed", "--baselines", "lora,merge", "--show", "none"]
    command += ["--limit", "6", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "lora: is not trained" in capsys.readouterr().err
    trained = ["--train-data", data, "--eval-data", data, "--learning-rates", "lora=0.01"]
    assert main([*command, *trained, "--set", "max_step=2"]) == 1
    assert "max_steps" in capsys.readouterr().err
    trained += ["--set", "max_steps=2"]
    assert main([*command, *trained]) == 1  # the models cannot be merged
    assert "merge: " in capsys.readouterr().err
    found = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert {row["system"] for row in found} == {"composed", "lora"}
    assert (tmp_path / "out/baselines/lora/adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out/baselines/lora/settings.json").read_text())["max_steps"] == 2
    # Trained once, it needs no rows any more.
    assert main([*command, "--baselines", "lora"]) == 0
