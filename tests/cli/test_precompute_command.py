"""`calm-graph precompute`, then `train --states`: from files to a checkpoint, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calm_graph.cli import main

QUICK = ["--max-steps", "4", "--batch-size", "4", "--device", "cpu"]


def command(cards: Path, *more: str) -> list[str]:
    return ["precompute", "prices.py", "--data", "train.jsonl", "--out", "states", "--registry", str(cards), *more]


def train(cards: Path, *more: str) -> list[str]:
    return [
        "train",
        "prices.py",
        "--data",
        "train.jsonl",
        "--states",
        "states",
        "--registry",
        str(cards),
        *QUICK,
        *more,
    ]


def test_states_are_made_and_used(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(cards, "--data", "dev.jsonl", "--dtype", "fp32")) == 0
    output = capsys.readouterr()
    assert output.out.startswith("states: the states of 27 samples; use them with train --states states")
    assert "27 samples, tokens: " in output.err and "precompute 27/27 samples" in output.err
    assert json.loads(Path("states/manifest.json").read_text())["dtype"] == "fp32"
    assert main(train(cards, "--eval", "dev.jsonl")) == 0
    assert "finished after 4 steps" in capsys.readouterr().out


def test_columns_mean_what_they_mean_in_training(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    renamed = [{"question": row["prompt"], "answer": row["completion"]} for row in rows]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    columns = ["--columns", "prompt=question,completion=answer"]
    assert main(command(cards)) == 1
    assert "question" in capsys.readouterr().err
    assert main(command(cards, "--columns", "prompt")) == 1
    assert "--columns: got 'prompt', but KEY=COLUMN is needed" in capsys.readouterr().err
    assert main(command(cards, *columns)) == 0
    assert main(train(cards, *columns)) == 0  # finds the states of its rows
    assert "finished after 4 steps" in capsys.readouterr().out


def test_a_dry_run_as_json(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(cards, "--dry-run", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == 27 and found["num_bytes"] == found["num_bytes_left"] > 0 and found["seconds"] > 0
    assert not Path("states").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval", "more.jsonl"], "no states for 1 of the 1 samples of more.jsonl (the first is sample 0)"),
        (["--max-length", "12", "--set", "long_rows=cut"], "their text or max_length has changed. Run: calm-graph"),
        (["--states", "none"], "none: there is no manifest.json, so it holds no cached states"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("more.jsonl").write_text('{"prompt": "a new", "completion": " row"}\n')
    assert main(command(cards)) == 0
    capsys.readouterr()
    assert main(train(cards, *arguments)) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_numbers_that_make_no_sense_are_named(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value, message in (
        ("--batch-size", "0", "batch_size: got 0, but at least 1 is needed"),
        ("--max-length", "0", "max_length: got 0, but at least 2 is needed"),
        ("--num-workers", "-1", "num_workers: got -1, but at least 0 is needed"),
        ("--device", "gpu", "device: got 'gpu': "),
    ):
        assert main(command(cards, flag, value)) == 1
        assert message in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(workplace: Path, cards: Path) -> None:
    """A real process and a real signal, as from a terminal."""
    rows = (json.dumps({"text": f"price of apples is {number}"}) + "\n" for number in range(4000))
    Path("train.jsonl").write_text("".join(rows))
    program = "import sys; from calm_graph.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command(cards, "--batch-size", "1")], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        assert "4,000 samples" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted: 0 of 1 shards are written; the same command goes on from there" in error
    assert "Traceback" not in error
    assert os.listdir("states") == ["manifest.json"]
