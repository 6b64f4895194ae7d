"""The wheel holds the packages and every data file they need, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_packages_and_data(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling, of the dev extra")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("calm_graph-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("calm_graph", "registry")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - names == set()
    assert {name.split("/")[0] for name in names} == {"calm_graph", "registry"}
    assert "calm_graph/py.typed" in names
    assert "registry/py.typed" in names
