"""A deployment that cannot start is refused at once, with all that is wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calm_graph.errors import DeclarationError
from calm_graph.serve.checks import check_settings
from calm_graph.serve.settings import ServeSettings

TRAINED = Path(__file__).parents[2] / "examples" / "arithmetic" / "trained"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRAINED, tmp_path / "copied"))


def problems(**fields: object) -> list[str]:
    with pytest.raises(DeclarationError) as raised:
        check_settings(ServeSettings.parse({"checkpoints": [str(TRAINED)], **fields}))
    return [str(problem) for problem in raised.value.problems]


def test_what_can_start_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ann:secret\n")
    checkpoints = [str(TRAINED), f"second={TRAINED}", "s3://bucket/not-looked-at"]
    http = {"api_keys_file": tmp_path / "keys"}
    check_settings(ServeSettings.parse({"checkpoints": checkpoints, "registries": [str(tmp_path)], "http": http}))
    one = {"checkpoints": [str(TRAINED)], "selectors": {"demo-both": "examples.serve.selector:choose"}}
    check_settings(ServeSettings.parse(one | {"remotes": ["demo-prices-garden=https://garden.example"]}))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    found = problems(
        checkpoints=[str(tmp_path), "./nowhere", str(TRAINED), f"demo-both={TRAINED}", "not-on/the-hub"],
        exports=[str(tmp_path / "export")],
        http={"api_keys_file": tmp_path / "keys"},
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        *(f"settings.checkpoints[{index}]" for index in (0, 1, 4, 3)),
        "settings.exports[0]",
        "settings.http",
    ]
    for problem, told in zip(
        found,
        (
            "there is no composition.json",
            "no such folder",
            "is no folder here, and the hub",
            "'demo-both', as one before",
        ),
        strict=False,
    ):
        assert told in problem


def test_names_of_nothing_that_is_served() -> None:
    found = problems(selectors={"demo": "a.b:c"}, remotes=["demo-prices=https://x.example"])
    assert found == [
        "settings.selectors['demo']: the compositions are 'demo-both'",
        "settings.remotes['demo-prices']: the compositions read 'demo-arithmetic', 'demo-prices-garden', "
        "'demo-prices-kitchen'",
    ]


def test_damaged_checkpoints(copied: Path) -> None:
    file, weights = copied / "composition.json", copied / "composition.safetensors"
    whole, description = weights.read_bytes(), file.read_text()
    for damaged, told in ((whole[:-1], "cut short"), (whole[:4], "cut short"), (b"", "cut short")):
        weights.write_bytes(damaged)
        assert told in problems(checkpoints=[str(copied)])[0]
    weights.unlink()
    assert "there is no composition.safetensors" in problems(checkpoints=[str(copied)])[0]
    weights.write_bytes(whole)
    changed = json.loads(description)
    changed["composition"]["name"] = "other"
    file.write_text(json.dumps(changed))
    assert "belongs to another composition" in problems(checkpoints=[str(copied)])[0]
    file.write_text(description.replace('"schema_version": 1', '"schema_version": 2'))
    assert "newer than 1" in problems(checkpoints=[str(copied)])[0]
    changed["composition"]["anchor"] = "another"
    file.write_text(json.dumps(changed))
    assert len(problems(checkpoints=[str(TRAINED), str(copied)])) == 1


def test_the_command_tells_it_before_ray_and_torch_are_there(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "calm_graph", "serve", str(tmp_path), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and time.monotonic() - began < 20
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("import time:")]
    assert any("settings.checkpoints[0]" in line and "there is no composition.json" in line for line in lines)
    imported = {
        line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")
    }
    assert "calm_graph.serve.checks" in imported
    assert not {"torch", "ray", "transformers"} & imported
