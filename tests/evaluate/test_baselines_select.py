"""Baselines as systems: each is made when its turn comes, trained once, and is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import CheckpointError, EvaluationError
from calm_graph.evaluate.baselines.reference import Reference
from calm_graph.evaluate.baselines.select import BaselineOptions, load_baseline, select_baselines
from calm_graph.evaluate.baselines.train import make_baseline
from calm_graph.evaluate.run import evaluate
from calm_graph.evaluate.select import Setup
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.evaluate.tasks.task import Task
from calm_graph.model.composed import ComposedModel
from calm_graph.train import fit
from registry.errors import FingerprintError
from tests.model.pico import Zoo
from tests.train.conftest import HELD_OUT, ROWS, quick

PROMPTS = [row["prompt"] for row in HELD_OUT]
COMPLETIONS = [row["completion"] for row in HELD_OUT]
OPTIONS = BaselineOptions(
    train_data=ROWS, eval_data=HELD_OUT, learning_rates={"lora": 1e-2, "full_finetune": 1e-2}, show="none"
)


def quiet(index: int) -> None:
    pass


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", seed=1)
    zoo.add("twin", "llama", seed=2)
    zoo.add("wide", "llama", seed=3, hidden_size=24, num_attention_heads=4)
    return zoo


@pytest.fixture(scope="module")
def run(zoo: Zoo) -> Path:
    composition = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("twin", attach=every(2))])
    out = zoo.folder / "run"
    fit(composition, data=ROWS, eval_data=HELD_OUT, out=out, settings=quick(), registry=zoo.registry, show="none")
    return out


@pytest.fixture(scope="module")
def reference(zoo: Zoo, run: Path) -> Reference:
    return Reference.of(run, registry=zoo.registry)


@pytest.fixture(scope="module")
def setup(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(checkpoint=str(run), out=tmp_path_factory.mktemp("out"), batch_size=4)


@pytest.mark.parametrize("kind", ["lora", "full_finetune"])
def test_a_trained_baseline_is_what_was_trained(kind: str, setup: Setup, reference: Reference) -> None:
    untrained = BaselineOptions(show="none")
    (candidate,) = select_baselines([kind], setup, untrained, reference=reference)
    with pytest.raises(EvaluationError, match=rf"{kind}: is not trained in .*; give the rows .* \(--train-data\)"):
        candidate.make()
    (candidate,) = select_baselines([kind], setup, OPTIONS, reference=reference)
    system = candidate.make()
    assert (candidate.name, system.name, system.few_shot) == (kind, kind, False)
    trained = make_baseline(kind, reference, quick())
    trained.load_composition_weights(setup.out / "baselines" / kind)
    expected = EngineSystem(trained)
    scores = system.score(PROMPTS, COMPLETIONS, done=quiet)
    assert scores == pytest.approx(expected.score(PROMPTS, COMPLETIONS, done=quiet), rel=1e-4)
    decoding = Decoding(max_new_tokens=6)
    assert system.generate(PROMPTS, decoding, done=quiet) == expected.generate(PROMPTS, decoding, done=quiet)
    anchor = PlainSystem.of_card(reference.anchor, name="anchor")
    assert sum(scores) < sum(anchor.score(PROMPTS, COMPLETIONS, done=quiet)) - 1
    (again,) = select_baselines([kind], setup, untrained, reference=reference)
    assert again.make().identity == system.identity


def test_identities_follow_what_was_trained(zoo: Zoo, setup: Setup, reference: Reference) -> None:
    other = Setup(checkpoint=setup.checkpoint, out=setup.out / "other")
    options = BaselineOptions(train_data=ROWS, learning_rates={"lora": 1e-3}, show="none")
    makers = [select_baselines(["lora"], *each, reference=reference) for each in ((setup, OPTIONS), (other, options))]
    first, second = (candidates[0].make() for candidates in makers)
    assert first.identity != second.identity
    folder = setup.out / "baselines/lora"
    description = json.loads((folder / "baseline.json").read_text())
    description["anchor"]["fingerprint"] = f"sha256:{'0' * 64}"
    moved = setup.out / "moved"
    moved.mkdir()
    (moved / "baseline.json").write_text(json.dumps(description))
    with pytest.raises(FingerprintError):
        load_baseline(moved, reference, name="lora")
    with pytest.raises(CheckpointError, match=r"there is no baseline\.json"):
        load_baseline(setup.out, reference, name="lora")


def test_an_ablation_is_a_trained_composition(setup: Setup, reference: Reference) -> None:
    (candidate,) = select_baselines(["composed_prompt"], setup, OPTIONS, reference=reference)
    system: Any = candidate.make()
    assert system.name == "composed_prompt" and isinstance(system.model, ComposedModel)
    assert system.model.plan.runs[0].reading == "prompt"


def test_models_as_they_are(zoo: Zoo, run: Path, setup: Setup, reference: Reference) -> None:
    options = BaselineOptions(routing="prompt", merge_alpha=0.0)
    made = {each.name: each.make() for each in
            select_baselines(["routing", "soft_ensemble", "merge"], setup, options, reference=reference)}  # fmt: skip
    assert list(made) == ["routing", "soft_ensemble", "merge"] == [system.name for system in made.values()]
    assert len({system.identity for system in made.values()}) == 3
    scores = {name: system.score(PROMPTS, COMPLETIONS, done=quiet) for name, system in made.items()}
    members = [
        PlainSystem.of_card(zoo.registry.get(name), name=name).score(PROMPTS, COMPLETIONS, done=quiet)
        for name in ("anchor", "twin")
    ]
    assert scores["merge"] == pytest.approx(members[0], rel=1e-6)
    for routed, one, two in zip(scores["routing"], *members, strict=True):
        assert routed == pytest.approx(one, rel=1e-5) or routed == pytest.approx(two, rel=1e-5)
    assert all(low < each < high for each, low, high in zip(
        scores["soft_ensemble"], map(min, *members), map(max, *members), strict=True))  # fmt: skip


def test_what_is_refused_is_named(zoo: Zoo, setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"got 'lroa', but there are lora, .*; did you mean 'lora'"):
        select_baselines(["lroa"], setup)
    composition = Composition(
        name="two",
        anchor="anchor",
        augmenters=[Augmenter("twin", attach=every(2)), Augmenter("wide", attach=every(2))],
    )
    reference = Reference.of(composition, registry=zoo.registry)
    candidates = select_baselines(["merge"], setup, reference=reference)
    assert [candidate.name for candidate in candidates] == ["merge_twin", "merge_wide"]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    task = Task(name="prices", data=str(data), prompt="{prompt}", reference="{completion}", metrics=("bits_per_byte",))
    done = evaluate([task], candidates, predictions=tmp_path / "predictions", show="none")
    assert {row.system for row in done.results.rows} == {"merge_twin"}
    (problem,) = done.problems
    assert problem.startswith("merge_wide: 'anchor' and 'wide' have different tensors (model.embed_tokens.weight:")
