"""Baselines that are trained: as many parameters, the same rows in the same order, nothing else moved, resumable."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import CheckpointError, EvaluationError
from calm_graph.evaluate.baselines.full_finetune import FullFinetune
from calm_graph.evaluate.baselines.lora import LoraAnchor, choose_ranks, linear_sizes, merge_updates
from calm_graph.evaluate.baselines.reference import Reference
from calm_graph.evaluate.baselines.train import make_baseline, train_baselines
from calm_graph.evaluate.baselines.trained_anchor import Description, TrainedAnchor
from calm_graph.model.build import build_model
from calm_graph.train import TrainingInterrupted, fit
from calm_graph.train import loop as loop_module
from calm_graph.train.metrics import read_metrics
from registry.weights import load_causal_lm
from tests.model.pico import Zoo
from tests.train.conftest import HELD_OUT, ROWS, quick

COMPOSITION = Composition(name="prices", anchor="anchor", augmenters=[Augmenter("same", attach=every(2))])
KINDS = ("lora", "full_finetune")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", seed=1)
    zoo.add("same", "qwen2", seed=2, hidden_size=24, num_attention_heads=4)
    zoo.add("gpt", "gpt2", seed=3)
    return zoo


@pytest.fixture(scope="module")
def reference(zoo: Zoo) -> Reference:
    return Reference.of(COMPOSITION, registry=zoo.registry)


def train(zoo: Zoo, out: Path, *names: str, **options: Any) -> Any:
    given = {"data": ROWS, "eval_data": HELD_OUT, "settings": quick(), "show": "none", **options}
    return train_baselines(COMPOSITION, names, out=out, registry=zoo.registry, **given)


def frozen(model: TrainedAnchor) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}


def trained(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(folder / {"lora": "adapter_model.safetensors", "full_finetune": "model.safetensors"}[kind])


def watched_batches(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None] = lambda step: None) -> list[Any]:
    seen: list[Any] = []

    def watching(model: Any, pieces: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append([piece["input_ids"].tolist() for piece in pieces])
        act(len(seen))
        return original(model, pieces, *args, **kwargs)

    original = loop_module.train_step
    monkeypatch.setattr(loop_module, "train_step", watching)
    return seen


@pytest.mark.parametrize("anchor", ["anchor", "gpt"])
def test_lora_trains_as_many_parameters_as_the_composition(zoo: Zoo, anchor: str) -> None:
    composition = COMPOSITION.model_copy(update={"anchor": anchor})
    reference = Reference.of(composition, registry=zoo.registry)
    attachments = build_model(composition, registry=zoo.registry).attachments
    wanted = sum(each.numel() for each in attachments.parameters())
    assert reference.num_parameters == wanted
    lora = make_baseline("lora", reference, quick())
    assert abs(lora.num_trained - wanted) <= 0.02 * wanted
    by_name = {name for name, each in lora.named_parameters() if each.requires_grad}
    sizes = linear_sizes(load_causal_lm(reference.anchor))
    assert {name.split(".lora_")[0] for name in by_name} == {f"anchor.{name}" for name in sizes}
    assert len(sizes) == {"anchor": 7 * 4, "gpt": 4 * 4}[anchor]


def test_ranks_are_shared_out_as_near_as_can_be() -> None:
    sizes = {f"layer{i}": 100 + i for i in range(10)}
    assert choose_ranks(sizes, 3 * sum(sizes.values())) == dict.fromkeys(sizes, 3)
    for wanted in (100, 777, 1045, 5000):
        ranks = choose_ranks(sizes, wanted)
        assert abs(sum(sizes[name] * rank for name, rank in ranks.items()) - wanted) <= 110 / 2
        assert max(ranks.values()) - min(ranks.values()) <= 1
    with pytest.raises(EvaluationError, match="got 99 parameters to train, but one rank of the smallest layer has 100"):
        choose_ranks(sizes, 99)


def test_a_fresh_baseline_is_its_anchor(zoo: Zoo, reference: Reference) -> None:
    ids = torch.arange(4, 24)[None]
    expected = load_causal_lm(reference.anchor)(ids).logits
    for kind in KINDS:
        model = make_baseline(kind, reference, quick())
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_come_as_in_the_run_of_the_composition(
    kind: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched_batches(monkeypatch)
    run = tmp_path / "run"
    fit(COMPOSITION, data=ROWS, eval_data=HELD_OUT, out=run, settings=quick(), registry=zoo.registry, show="none")
    by_composition = list(seen)
    seen.clear()
    # The settings are those of the run, but for the learning rate.
    (result,) = train_baselines(
        run, [kind], data=ROWS, eval_data=HELD_OUT, out=tmp_path / "out", registry=zoo.registry, show="none"
    ).values()
    assert seen == by_composition and len(seen) == 6
    assert result.metrics["eval_loss"] < result.metrics["first_eval_loss"]
    stored = json.loads((tmp_path / "out" / kind / "settings.json").read_text())
    changed = {name for name, value in quick().model_dump(mode="json").items() if stored[name] != value}
    assert changed == {"learning_rate"}
    records = {name: read_metrics(folder / "metrics.jsonl") for name, folder in
               {"run": run, "own": tmp_path / "out" / kind}.items()}  # fmt: skip
    # Before training both are the anchor.
    assert records["run"][0]["eval_loss"] == pytest.approx(records["own"][0]["eval_loss"], rel=1e-6)
    with pytest.raises(EvaluationError, match=r"its rows \(sha256:.*\) are not those that 'prices' was trained on"):
        train_baselines(run, [kind], data=ROWS[:-1], out=tmp_path / "other", registry=zoo.registry, show="none")


def test_lora_leaves_the_anchor_bit_for_bit(zoo: Zoo, reference: Reference, tmp_path: Path) -> None:
    model = LoraAnchor(reference.anchor, settings=quick(), num_parameters=4000)
    before = frozen(model)
    assert sum(each.numel() for each in before.values()) == load_causal_lm(reference.anchor).num_parameters()
    fit(model, data=ROWS, out=tmp_path, settings=quick(), show="none")
    after = frozen(model)
    assert before.keys() == after.keys() and all(torch.equal(each, after[name]) for name, each in before.items())
    assert any(each.abs().max() > 0 for name, each in model.named_parameters() if ".lora_B." in name)


def test_full_finetuning_moves_every_weight_and_is_an_ordinary_folder(
    zoo: Zoo, reference: Reference, tmp_path: Path
) -> None:
    model = FullFinetune(reference.anchor, settings=quick())
    assert model.num_trained == model.anchor.num_parameters()
    result = fit(model, data=ROWS, out=tmp_path, settings=quick(), show="none")
    plain = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    ids = torch.arange(4, 24)[None]
    assert torch.equal(plain(ids).logits, model(ids).logits)
    before = load_causal_lm(reference.anchor).state_dict()
    assert not any(torch.equal(each, before[name]) for name, each in plain.state_dict().items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("anchor", ["anchor", "gpt"])
def test_peft_and_the_merged_model_give_the_trained_models_numbers(zoo: Zoo, anchor: str, tmp_path: Path) -> None:
    card = zoo.registry.get(anchor)
    model = LoraAnchor(card, settings=quick(), num_parameters=4000)
    fit(model, data=ROWS, out=tmp_path, settings=quick(), show="none")
    ids = torch.arange(4, 24)[None]
    expected = model(ids).logits
    plain = load_causal_lm(card)
    assert (plain(ids).logits - expected).abs().max() > 1e-3
    merge_updates(plain, tmp_path)
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert plain.state_dict().keys() == load_causal_lm(card).state_dict().keys()
    wrapped = PeftModel.from_pretrained(load_causal_lm(card), tmp_path)
    torch.testing.assert_close(wrapped(ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(
    kind: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(zoo, tmp_path / "whole", kind)
    with monkeypatch.context() as patched:
        watched_batches(patched, lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
        with pytest.raises(TrainingInterrupted, match="interrupted at step 3 of 6"):
            train(zoo, tmp_path / "parts", kind)
    seen = watched_batches(monkeypatch)
    train(zoo, tmp_path / "parts", kind)
    assert len(seen) == 3
    whole, parts = (trained(tmp_path / name / kind, kind) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(each, parts[name]) for name, each in whole.items())
    seen.clear()
    train(zoo, tmp_path / "parts", kind)  # what is finished is not done again
    assert not seen


def test_what_a_baseline_says_of_itself(zoo: Zoo, reference: Reference, tmp_path: Path) -> None:
    results = train(zoo, tmp_path, "lora", "full_finetune", settings=quick(max_steps=1))
    assert list(results) == ["lora", "full_finetune"]
    for kind, result in results.items():
        found = Description.read(Path(result.checkpoint))
        assert (found.kind, found.anchor.name) == (kind, "anchor")
        assert found.num_composition_parameters == reference.num_parameters
        assert found.num_parameters == make_baseline(kind, reference, quick()).num_trained
    lora = make_baseline("lora", reference, quick())
    with pytest.raises(CheckpointError, match=r"is full_finetune of 'anchor' .*, but lora of 'anchor'"):
        lora.load_composition_weights(tmp_path / "full_finetune")
    zoo.add("newer", "llama", seed=9)
    other = LoraAnchor(zoo.registry.get("newer"), settings=quick(), num_parameters=reference.num_parameters)
    with pytest.raises(CheckpointError, match="is lora of 'anchor'"):
        other.load_composition_weights(tmp_path / "lora")


def test_names_that_are_not_trained_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"got 'loar', but lora, full_finetune, composed_.* can be trained"):
        train(zoo, tmp_path, "loar")
    with pytest.raises(CheckpointError, match=r"there is no baseline\.json"):
        Description.read(tmp_path)
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        Description.read(tmp_path)


def test_a_baseline_of_a_run_on_told_states_is_trained_on_its_answers(zoo: Zoo, tmp_path: Path) -> None:
    rows = [{**row, "told": row["prompt"]} for row in ROWS]
    fit(COMPOSITION, data=rows, out=tmp_path / "run", settings=quick(told_layer=3, max_steps=2), registry=zoo.registry,
        show="none")  # fmt: skip
    options: dict[str, Any] = {"data": rows, "registry": zoo.registry, "show": "none"}
    found = train_baselines(tmp_path / "run", ["lora", "composed_gate"], out=tmp_path / "out", **options)
    assert found["lora"].metrics["loss"] > 0.5  # of answers
    assert found["composed_gate"].metrics["loss"] == pytest.approx(0, abs=1e-6)  # nothing but the prompt is told
    settings = {name: json.loads((tmp_path / "out" / name / "settings.json").read_text()) for name in found}
    assert [settings[name]["told_layer"] for name in ("lora", "composed_gate")] == [None, 3]
