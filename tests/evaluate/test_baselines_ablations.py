"""Ablations: one thing is changed and nothing else, and a random model is random, seeded and of the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calm_graph import Augmenter, Composition, at, every
from calm_graph.cli import main
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines.ablations import derive, is_ablation
from calm_graph.evaluate.baselines.random_weights import randomise, read_random
from calm_graph.evaluate.baselines.train import some_rows, train_baselines
from calm_graph.evaluate.reports.results import split_rows
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.graph import make_plan
from calm_graph.train.metrics import read_metrics
from registry import ModelCard, Registry, registry
from registry.fingerprint import tokenizer_fingerprint
from registry.weights import load_causal_lm
from tests.model.pico import Zoo
from tests.train.conftest import ROWS, quick

WHOLE = Composition(
    name="whole",
    anchor="anchor",
    augmenters=[Augmenter("same", attach=every(2)), Augmenter("other", attach=at(anchor_layers=[1]), reading="prompt")],
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", seed=1)
    zoo.add("same", "qwen2", seed=2)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    zoo.add("plain", "qwen2", seed=4)
    return zoo


@pytest.mark.parametrize(
    "name, field, values",
    [
        ("composed_prompt", "reading", ("prompt", "prompt")),
        ("composed_stream", "reading", ("stream", "stream")),
        ("composed_causal", "prompt_visibility", ("causal", "causal")),
        ("composed_no_norms", "norms", ("none", "none")),
        ("composed_gate", "gate", ("tanh", "tanh")),
        ("composed_rotary", "positions", ("rotary", "rotary")),
        ("composed_distance", "positions", ("distance", "distance")),
        ("composed_open_words", "open_words", ("read", "wait")),
        ("composed_relative", "writes", ("relative", "relative")),
        ("composed_spare", "first_token", ("spare", "spare")),
        ("composed_every_1", "attach", (every(1), every(1))),
        ("composed_heads_2", "num_heads", (2, 2)),
    ],
)
def test_one_thing_is_changed(zoo: Zoo, name: str, field: str, values: tuple[object, ...]) -> None:
    derived = derive(WHOLE, name)
    assert derived.name == f"whole-{name}"
    assert tuple(getattr(augmenter, field) for augmenter in derived.augmenters) == values
    back = [
        each.model_copy(update={field: getattr(old, field)})
        for each, old in zip(derived.augmenters, WHOLE.augmenters, strict=True)
    ]
    assert tuple(back) == WHOLE.augmenters
    make_plan(derived, registry=zoo.registry)


def test_heads_of_single_attachments_are_changed_too(zoo: Zoo) -> None:
    attach = [{"augmenter_layer": 1, "anchor_layer": 2, "num_heads": 4}]
    composition = WHOLE.model_copy(update={"augmenters": (Augmenter("same", attach=attach),)})
    plan = make_plan(derive(composition, "composed_heads_2"), registry=zoo.registry)
    assert [planned.num_heads for planned in plan.attachments] == [2]


def test_a_data_size_changes_the_rows_and_nothing_else(zoo: Zoo, tmp_path: Path) -> None:
    assert split_rows("composed_rows_500") == ("composed", 500) and split_rows("composed_heads_2") == (
        "composed_heads_2",
        None,
    )
    assert is_ablation("composed_rows_5") and is_ablation("composed_heads_2_rows_5") and not is_ablation("lora_rows_5")
    assert derive(WHOLE, "composed_rows_5").augmenters == WHOLE.augmenters
    assert derive(WHOLE, "composed_heads_2_rows_5").augmenters == derive(WHOLE, "composed_heads_2").augmenters
    few, more = (some_rows("x", count, ROWS, seed=3) for count in (5, 12))
    assert (len(few), len(more)) == (5, 12) and all(row in more for row in few)
    assert [ROWS.index(row) for row in more] == sorted(ROWS.index(row) for row in more)
    names = ["composed_rows_8", "lora_rows_8", "composed_heads_2_rows_8"]
    options = {"data": ROWS, "settings": quick(batch_size=4, max_steps=4), "registry": zoo.registry, "show": "none"}
    results = train_baselines(WHOLE, names, out=tmp_path, **options)  # type: ignore[arg-type]
    assert list(results) == names
    for name in names:
        assert read_metrics(tmp_path / name / "metrics.jsonl")[-1]["epoch"] == pytest.approx(2, abs=0.51)
    renamed = [{"q": row["prompt"], "a": row["completion"]} for row in ROWS]
    options |= {"data": renamed, "eval_data": renamed[:3], "columns": {"prompt": "q", "completion": "a"}}
    again = train_baselines(WHOLE, names[:1], out=tmp_path / "renamed", **options)  # type: ignore[arg-type]
    assert again[names[0]].metrics["loss"] == results[names[0]].metrics["loss"]
    with pytest.raises(EvaluationError, match=f"composed_rows_5000: there are only {len(ROWS)} rows"):
        train_baselines(WHOLE, ["composed_rows_5000"], out=tmp_path, **options)  # type: ignore[arg-type]


def test_another_model_is_read() -> None:
    derived = derive(WHOLE, "composed_vanilla", replaced={"same": "plain"})
    assert [augmenter.name for augmenter in derived.augmenters] == ["plain", "other"]
    assert derived.augmenters[0].attach == WHOLE.augmenters[0].attach


def test_what_is_no_ablation_is_refused() -> None:
    with pytest.raises(EvaluationError, match="composed_no_gate: nothing of 'whole' is changed by it; leave it out"):
        derive(WHOLE, "composed_no_gate")
    with pytest.raises(EvaluationError, match="composed_vanilla: nothing of 'whole' is changed by it; give the card"):
        derive(WHOLE, "composed_vanilla")
    with pytest.raises(EvaluationError, match="got 'smae', but the composition has the augmenters same, other"):
        derive(WHOLE, "composed_vanilla", replaced={"smae": "plain"})
    with pytest.raises(EvaluationError, match="got 'composed_every_0', but allowed are composed_vanilla"):
        derive(WHOLE, "composed_every_0")
    assert not is_ablation("lora") and not is_ablation("composed") and is_ablation("composed_every_12")


def test_a_random_model_has_the_shape_and_nothing_of_the_weights(zoo: Zoo, tmp_path: Path) -> None:
    card = zoo.registry.get("other")
    cards = [randomise(card, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    a, b, c = (load_causal_lm(each).state_dict() for each in cards)
    own = load_causal_lm(card).state_dict()
    assert {name: each.shape for name, each in a.items()} == {name: each.shape for name, each in own.items()}
    matrices = [name for name, each in own.items() if each.ndim == 2 and each.is_floating_point()]
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], other[name]) for name in matrices for other in (c, own))
    assert tokenizer_fingerprint(tmp_path / "a") == tokenizer_fingerprint(zoo.folder / "other")
    assert read_random(tmp_path / "a") == cards[0] and read_random(tmp_path) is None
    assert Registry().add_folder(tmp_path / "a") == (cards[0],)
    with pytest.raises(EvaluationError, match="is not an empty folder"):
        randomise(card, tmp_path / "a")
    with pytest.raises(EvaluationError, match="it runs in remote"):
        randomise(ModelCard(name="far", source="remote:http://127.0.0.1:1"), tmp_path / "d")


def test_the_command_writes_a_model_that_can_be_named(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Commands add --registry folders to the default registry, which other tests must not see.
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    cards = tmp_path / "cards"
    cards.mkdir()
    (cards / "same.json").write_text(zoo.registry.get("same").model_dump_json())
    assert main(["randomise", "same", str(tmp_path / "out"), "--seed", "2", "--registry", str(cards)]) == 0
    assert "same with random weights, seed 2" in capsys.readouterr().out
    (card,) = Registry().add_folder(tmp_path / "out")
    assert card.name == "same-random"
    load_causal_lm(card)


def test_ablations_are_trained_like_the_whole(zoo: Zoo, tmp_path: Path) -> None:
    whole = Composition(name="whole", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])
    names = ["composed_random", "composed_vanilla", "composed_prompt"]
    options = {"replaced": {"same": "plain"}, "settings": quick(max_steps=2), "registry": zoo.registry, "show": "none"}
    results = train_baselines(whole, names, data=ROWS, out=tmp_path, **options)  # type: ignore[arg-type]
    read = {}
    for name, result in results.items():
        model = ComposedModel.from_pretrained(result.checkpoint, registry=zoo.registry)
        read[name] = {run.name for run in model.plan.runs}, model.plan.runs[0].reading
        assert model.plan.composition.name == f"whole-{name}"
    assert read == {
        "composed_random": ({"anchor", "same-random"}, "stream"),
        "composed_vanilla": ({"anchor", "plain"}, "stream"),
        "composed_prompt": ({"anchor", "same"}, "prompt"),
    }
    assert "same-random" not in zoo.registry
    before = (tmp_path / "random/same/model.safetensors").read_bytes()
    train_baselines(whole, names[:1], data=ROWS, out=tmp_path, **options)  # type: ignore[arg-type]
    assert (tmp_path / "random/same/model.safetensors").read_bytes() == before
    with pytest.raises(EvaluationError, match="composed_stream: nothing of 'whole' is changed"):
        train_baselines(whole, ["lora", "composed_stream"], data=ROWS, out=tmp_path / "new", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
