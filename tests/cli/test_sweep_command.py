"""`calm-graph sweep`: from files to a ranking and the best declaration, on a local Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from calm_graph.cli import main

FILES = ["prices.py", "--data", "train.jsonl", "--eval", "dev.jsonl"]


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_the_command_prints_a_table_and_a_declaration_to_train(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [*FILES, "--registry", str(cards)]
    options = ["--placement", "every:2,every:4", "--max-steps", "2", "--batch-size", "4", "--device", "cpu"]
    assert main(["sweep", *files, *options, "--out", "sweep", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {trial["state"] for trial in found["trials"]} == {"finished"}
    assert found["best"]["name"] in {"every2", "every4"} and found["best"]["name"] in found["front"]
    assert main(["check", "sweep/best.json", "--registry", str(cards)]) == 0
    assert "sweep/best.json: ok" in capsys.readouterr().out
    assert main(["sweep", *files, *options, "--out", "sweep"]) == 1
    assert "holds a sweep; go on with resume (--resume)" in capsys.readouterr().err
    assert main(["sweep", *files, *options, "--out", "sweep", "--resume"]) == 0
    assert f"{Path.cwd()}/sweep/sweep.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--placement", "every4"], "space.placement: got ['every4']: a placement is every:STEP"),
        (["--reading", "prompt,both"], "space.reading[1]: got 'both', but allowed are 'prompt' or 'stream'"),
        (["--set", "num_workers=2"], "settings.num_workers: got 2, but each trial of a sweep is one process"),
    ],
)
def test_a_mistake_is_told_before_ray_is_started(
    workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["sweep", *FILES, "--registry", str(cards), *more]) == 1
    assert message in capsys.readouterr().err
    assert not ray.is_initialized()
