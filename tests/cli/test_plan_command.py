"""`calm-graph plan`: a budget on paper, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calm_graph.cli import main

ROOT = Path(__file__).parents[2]


def command(cards: Path, *more: str) -> list[str]:
    return ["plan", "prices.py", "--gpu", "h100", "--tokens", "1e9", "--registry", str(cards), *more]


def test_a_table_and_the_same_as_json(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--num-gpus", "64", "--sequence-length", "128", "--token-ratio", "same=1.25")
    assert main(command(cards, *more)) == 0
    table = capsys.readouterr().out
    assert table.startswith("prices on 64 x NVIDIA H100 SXM in bf16: 1.00 G tokens in 15,259 steps of 512 samples")
    assert "fits into 80.0 GB" in table
    assert main(command(cards, *more, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_steps"], found["fits"], found["workload"]["token_ratios"]) == (15_259, True, {"same": 1.25})
    assert found["memory"]["peak"] > found["memory"]["frozen_weights"] > 0
    assert found["sample_flops"]["total"] > found["sample_flops"]["backward"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sharding", "ddp"], "workload.sharding: got 'ddp', but allowed are 'none' or 'fsdp'"),
        (["--token-ratio", "same"], "--token-ratio: got 'same', but AUGMENTER=X is needed"),
        (["--utilisation", "40"], "utilisation: got 40.0, but a share of the peak is needed"),
        (["--tokens", "many"], "workload.num_tokens: got 'many', but a number is needed"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(cards, "--sequence-length", "64", *more)) == 1
    assert message in capsys.readouterr().err


def test_no_torch_is_imported(workplace: Path, cards: Path) -> None:
    arguments = command(cards, "--sequence-length", "64")
    program = f"import sys; from calm_graph.cli import main; main({arguments!r}); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-c", program]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "False"
