"""`calm-graph bench-serve` on a server of scripted answers, as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calm_graph.cli import main
from tests.http.conftest import Served, served, shared_server  # noqa: F401 (fixtures)


def test_a_table_a_file_and_a_picture(
    served: Served,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bench"
    arguments = ["--concurrency", "2,1", "--num-requests", "4", "--max-tokens", "5", "--out", str(out)]
    assert main(["bench-serve", served.url, *arguments]) == 0
    printed = capsys.readouterr()
    assert "concurrency 2" in printed.out and "tokens/s" in printed.out and "4/4" in printed.out
    assert "concurrency 1: 4 requests" in printed.err
    found = json.loads((out / "bench-serve.json").read_text())
    assert [load["concurrency"] for load in found["loads"]] == [2, 1]
    assert found["loads"][0]["num_answered"] == 4 and found["is_whole"] and found["model"] == "garden"
    assert (out / "bench-serve.png").read_bytes().startswith(b"\x89PNG")
    texts = [served.client.tokenizer.decode(list(request.prompt_ids)) for request in served.client.requests]
    assert len(set(texts)) == 8


def test_own_prompts_at_random_times_as_json(
    served: Served,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"prompt": "!refuse"}\n')
    arguments = ["--rate", "200", "--num-requests", "4", "--prompts", str(prompts), "--json", "--chat"]
    assert main(["bench-serve", served.url, *arguments]) == 1  # half of them failed
    (load,) = json.loads(capsys.readouterr().out)["loads"]
    assert load["rate"] == 200 and load["errors"] == {"invalid_value": 2} and load["num_answered"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "kitchen"], "model: got 'kitchen'"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (["--max-tokens", "0"], "max_tokens: got 0"),
        (["--max-tokens", "5000"], "the context is 192 tokens"),
    ],
)
def test_a_mistake_is_named(
    served: Served,  # noqa: F811
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench-serve", served.url, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not served.client.requests


def test_ctrl_c_ends_with_what_was_measured(served: Served, tmp_path: Path) -> None:  # noqa: F811
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("quick\n!slow\n")
    command = [sys.executable, "-m", "calm_graph", "bench-serve", served.url, "--json", "--concurrency", "2,4"]
    command += ["--num-requests", "10000", "--max-tokens", "2", "--prompts", str(prompts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(served.client.requests) < 20:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    found = json.loads(out)
    assert not found["is_whole"] and found["loads"][0]["num_answered"] >= 10 and len(found["loads"]) == 1
