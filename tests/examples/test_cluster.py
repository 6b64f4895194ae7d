"""The page "from laptop to cluster": what can be run of it is run, the rest is checked against Ray's own schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples/cluster"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_trains_on_two_nodes_and_both_are_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.cluster.two_nodes", "--out", str(tmp_path), "--max-steps", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished after 10 steps" in done.stdout
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 10
    address = done.stdout.partition("two nodes at ")[2].partition(";")[0]
    assert address and address not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text("utf-8"))
    return content


def test_the_autoscaler_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read("cluster.yaml"))
    validate_config(config)
    assert config["available_node_types"]["gpu"]["max_workers"] == config["max_workers"]


def test_the_job_on_kubernetes_runs_a_command_that_is_understood() -> None:
    from calm_graph.cli import _parser

    job = read("rayjob.yaml")["spec"]
    program, *arguments = job["entrypoint"].split()
    assert program == "calm-graph"
    options = _parser().parse_args(arguments)
    workers = job["rayClusterSpec"]["workerGroupSpecs"]
    assert options.resume and options.use_gpu and int(options.num_workers) == sum(each["replicas"] for each in workers)
    (limits,) = (each["template"]["spec"]["containers"][0]["resources"]["limits"] for each in workers)
    assert limits["nvidia.com/gpu"] == "1"
