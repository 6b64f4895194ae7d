from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calm_graph.declare.space import Choice
from calm_graph.errors import TrainingError
from calm_graph.train.sweep_report import plot, print_table
from calm_graph.train.sweep_results import SweepFolder, Trial, pareto_front, ranked

FACTS = {"data": "train.jsonl", "settings": {"max_steps": 4}}


def trial(name: str, score: float | None, num_parameters: int | None = 1000, **changes: Any) -> Trial:
    fields: dict[str, Any] = {"state": "finished", "first_score": 3.0, "steps": 4, **changes}
    return Trial(name=name, choice=Choice(num_heads=2), score=score, num_parameters=num_parameters, **fields)


TRIALS = [
    trial("large", 1.0, 4000),
    trial("small", 2.0, 1000),
    trial("small-but-worse", 2.5, 1000),
    trial("larger-but-worse", 1.5, 5000),
    trial("stopped", 0.5, 10, state="stopped"),
    trial("failed", None, None, state="failed", error="no such file\nat line 3"),
]


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto_front(TRIALS[:4]) == ("small", "large")
    assert pareto_front([]) == ()


def test_ranking_puts_the_best_first_and_only_finished_trials_win() -> None:
    result = ranked(Path(), TRIALS)
    assert result.trials[0].name == "stopped"
    assert result.trials[-1].name == "failed"
    assert result.best is not None and result.best.name == "large"
    assert result.front == ("small", "large")
    assert ranked(Path(), TRIALS[4:]).best is None


def test_the_table_and_the_plot_show_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ranked(tmp_path, TRIALS)
    print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(TRIALS)
    ends = {line.split()[0]: line for line in lines[2:]}
    assert ends["large"].endswith("best") and ends["small"].endswith("Pareto front")
    assert ends["stopped"].endswith("stopped early") and ends["failed"].endswith("failed: no such file")
    for trials in (TRIALS, TRIALS[5:]):
        plot(ranked(tmp_path, trials), tmp_path / "sweep.png")
        assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_is_gone_on_with_only_if_asked_and_only_the_same(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    assert folder.open(FACTS, resume=False) == ()
    for each in TRIALS:
        folder.add(each)
    with (folder.path / "trials.jsonl").open("a") as file:
        file.write('{"name": "half a li')
    with pytest.raises(TrainingError, match="holds a sweep; go on with resume"):
        folder.open(FACTS, resume=False)
    with pytest.raises(TrainingError, match="cannot go on with another settings"):
        folder.open({**FACTS, "settings": {}}, resume=True)
    assert folder.open(FACTS, resume=True) == tuple(TRIALS[:5])  # what failed is tried again
    lines = (folder.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [each.name for each in TRIALS[:5]]
