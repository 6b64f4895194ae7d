"""A real sweep on a local Ray cluster of two CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from calm_graph import Augmenter, Composition, every
from calm_graph.declare.files import load_composition
from calm_graph.declare.space import Space
from calm_graph.errors import TrainingError
from calm_graph.train.ray_sweep import sweep
from calm_graph.train.sweep_results import SweepResult
from tests.model.pico import Zoo
from tests.train.conftest import HELD_OUT, ROWS, quick

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

COMPOSITION = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(zoo: Zoo, out: Path, space: Space, **changes: Any) -> SweepResult:
    arguments = {"settings": quick(), "registry": zoo.registry, "show": "none", **changes}
    return sweep(COMPOSITION, data=ROWS, eval_data=HELD_OUT, space=space, out=out, **arguments)


def test_a_sweep_ranks_reports_failures_and_goes_on_where_it_ended(
    train_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # every(9) cannot be built, and a learning rate of 1e30 ends in numbers that are none.
    space = Space(placement=(every(1), every(9)), learning_rate=(1e-2, 1e30))
    result = run(train_zoo, tmp_path, space)
    trials = {trial.name: trial for trial in result.trials}
    assert set(trials) == {choice.name for choice in space.choices()}
    good, wild = trials["every1-lr0.01"], trials["every1-lr1e+30"]
    assert (good.state, good.steps, result.best) == ("finished", 6, good)
    assert good.score is not None and good.first_score is not None and good.score < good.first_score
    assert wild.state == "failed" and "not a finite number" in str(wild.error)
    assert "only 4 layers" in str(trials["every9-lr0.01"].error)
    best = load_composition(tmp_path / "best.json")
    assert best.augmenters[0].attach == every(1)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("best.json", "sweep.json", "sweep.png", "trials", "trials.jsonl"),
    }

    assert capsys.readouterr() == ("", "")

    finished_at = (tmp_path / "trials" / good.name / "result.json").stat().st_mtime_ns
    again = run(train_zoo, tmp_path, Space(placement=(every(1), every(2)), learning_rate=(1e-2,)), resume=True)
    assert [trial.state for trial in again.trials] == ["finished", "finished"]
    assert (tmp_path / "trials" / good.name / "result.json").stat().st_mtime_ns == finished_at
    small = next(trial for trial in again.trials if trial.name == "every2-lr0.01")
    assert small.num_parameters is not None and good.num_parameters == 2 * small.num_parameters


@pytest.mark.slow
def test_what_is_behind_is_stopped_early(train_zoo: Zoo, tmp_path: Path) -> None:
    space = Space(learning_rate=(1e-2, 1e-9, 1e-8))
    # Two CPUs for a trial: one after the other, so that the good one is there to be compared with.
    result = run(train_zoo, tmp_path, space, stop_early=True, cpus_per_trial=2)
    states = {trial.name: (trial.state, trial.steps) for trial in result.trials}
    assert states["lr0.01"] == ("finished", 6)
    assert states["lr1e-09"] == ("stopped", 2)


def test_more_than_any_node_has_is_refused(train_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a trial asks for 3 CPUs and 0 GPUs, but the cluster's nodes have 2 CPUs"):
        run(train_zoo, tmp_path, Space(), cpus_per_trial=3)
    with pytest.raises(TrainingError, match="num_workers: got 2, but each trial of a sweep is one process"):
        run(train_zoo, tmp_path, Space(), settings=quick(num_workers=2))
    assert not list(tmp_path.iterdir())
