from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plan_accuracy

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_list_has_a_line_for_each_benchmark() -> None:
    lines = run("--list").stdout.splitlines()
    assert any(line.startswith("plan ") and "50 ms" in line for line in lines)


def test_the_last_line_is_the_result() -> None:
    done = run("plan")
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"name", "value", "bar", "holds", "unit", "machine"}
    assert (result["name"], result["bar"], result["unit"]) == ("plan", 50.0, "ms")
    assert done.returncode == (0 if result["holds"] else 1)
    assert "heavy modules imported: none" in done.stdout


def test_a_name_that_is_not_there() -> None:
    assert run("plam").returncode == 2


def test_plans_agree_with_a_measured_step(tmp_path: Path) -> None:
    case = next(plan_accuracy.cases(tmp_path))
    for figure, (planned, measured) in plan_accuracy.compare(case).items():
        assert planned == pytest.approx(measured, rel=0.05), figure
