"""`calm-graph train`: from files to a checkpoint, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from calm_graph.cli import main
from calm_graph.train.metrics import read_metrics
from calm_graph.train.state import list_states

QUICK = ["--max-steps", "4", "--batch-size", "4", "--device", "cpu", "--set", "eval_every_steps=2"]


def command(cards: Path, *more: str) -> list[str]:
    return ["train", "prices.py", "--data", "train.jsonl", "--registry", str(cards), *more]


def test_files_become_a_checkpoint(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(command(cards, "--eval", "dev.jsonl", "--out", "out", *QUICK, "--set", "betas=[0.9,0.95]"))
    assert code == 0
    output = capsys.readouterr()
    assert output.out.startswith("out: finished after 4 steps  loss ")
    assert "eval_bits_per_byte" in output.out
    assert "step 2/4  eval loss" in output.err
    settings = json.loads(Path("out/settings.json").read_text())
    assert (settings["max_steps"], settings["betas"], settings["eval_every_steps"]) == (4, [0.9, 0.95], 2)
    assert {"composition.safetensors", "composition.json", "loss.png", "metrics.jsonl", "result.json"} <= set(
        os.listdir("out")
    )


def test_states_first_and_then_answers(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    Path("told.jsonl").write_text("".join(json.dumps({**row, "told": row["prompt"]}) + "\n" for row in rows))
    told = ["train", "prices.py", "--data", "told.jsonl", "--registry", str(cards), *QUICK, "--out", "told"]
    assert main([*told, "--set", "told_layer=0"]) == 1
    assert "settings.told_layer: got 0, but allowed are 3..3" in capsys.readouterr().err
    assert main([*told, "--set", "told_layer=3"]) == 0
    # The second stage is of both files.
    assert main(command(cards, "--data", "told.jsonl", "--start", "told", "--out", "out", *QUICK)) == 0
    assert "out: finished after 4 steps" in capsys.readouterr().out
    assert main(command(cards, "--start", "tolt", "--out", "out2", *QUICK)) == 1
    assert "tolt: there is no composition.json" in capsys.readouterr().err


def test_columns_of_parquet_files_are_named(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    for part, some in enumerate((rows[::2], rows[1::2])):
        table = {"question": [row["prompt"] for row in some], "answer": [row["completion"] for row in some]}
        parquet.write_table(pa.table(table), f"part-{part}.parquet")
    arguments = ["train", "prices.py", "--data", "part-*.parquet", "--registry", str(cards), *QUICK]
    assert main(arguments) == 1
    assert "got the columns question, answer, but a row is" in capsys.readouterr().err
    assert main([*arguments, "--columns", "prompt=question, completion=answer"]) == 0
    assert "finished after 4 steps" in capsys.readouterr().out


def test_the_default_folder_is_named_after_the_composition_and_json_is_json(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(cards, *QUICK, "--json", "--show", "none")) == 0
    output = capsys.readouterr()
    assert "step" not in output.err
    result = json.loads(output.out)
    assert (result["checkpoint"], result["stopped"], result["steps"]) == ("runs/prices", "finished", 4)
    assert result["metrics"]["loss"] > 0


def test_a_second_run_is_refused_and_resume_goes_on(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(cards, *QUICK)) == 0
    assert main(command(cards, *QUICK)) == 1
    assert "runs/prices: holds a finished run; go on with resume (--resume)" in capsys.readouterr().err
    assert main(command(cards, *QUICK, "--max-steps", "6", "--resume")) == 0
    assert "finished after 6 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "lerning_rate=1"], "settings.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        (["--set", "told_layer=four"], "settings.told_layer: got 'four', but a whole number is needed"),
        (["--set", "patience"], "--set: got 'patience', but NAME=VALUE is needed"),
        (["--max-steps", "many"], "settings.max_steps: got 'many'"),
        (["--set", "precision=fp8"], "settings.precision: got 'fp8', but allowed are 'fp32' or 'bf16'"),
        (["--data", "none.jsonl"], "none.jsonl: no such file, folder of .jsonl or .parquet files, or glob"),
        (["--columns", "prompt"], "--columns: got 'prompt', but KEY=COLUMN is needed, such as prompt=question"),
        (["--columns", "text=txet"], "train.jsonl:1 and 26 more: no column 'txet' among prompt, completion"),
        (["--set", "patience=2"], "patience is 2, but without eval_data nothing is evaluated"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(command(cards, "--device", "cpu", *arguments)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_ctrl_c_saves_and_says_how_to_resume(workplace: Path, cards: Path) -> None:
    """A real process and a real signal, as from a terminal."""
    arguments = command(cards, "--max-steps", "100000", "--batch-size", "2", "--device", "cpu")
    program = "import sys; from calm_graph.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(read_metrics(Path("runs/prices/metrics.jsonl"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted at step" in error and "Resume with the same command and --resume" in error
    assert "Traceback" not in error
    assert len(list_states(Path("runs/prices/checkpoints"))) == 1
