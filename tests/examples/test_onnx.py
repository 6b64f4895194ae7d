"""The examples of `examples/onnx`, on a pico model in the place of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.onnx.real import PRECISIONS, table
from registry import registry
from tests.model.pico import Zoo


def test_a_model_is_exported_verified_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("pico", "llama", tokenizer="bytes", seed=2, num_hidden_layers=2)
    monkeypatch.setattr(registry, "_cards", {"pico": zoo.registry.get("pico")})
    lines = table("pico", [1], tmp_path / "out").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == ["torch fp32", *(f"ONNX {each}" for each in PRECISIONS)]
    assert all(row[1].endswith(" MB") for row in cells[2:])
    assert [row[2] for row in cells[2:4]] == ["", "1.0000"] and float(cells[3][3]) < 1e-4
    assert all(float(cell.removesuffix(" ms")) > 0 for row in cells[2:] for cell in row[4:])
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == sorted(PRECISIONS)
