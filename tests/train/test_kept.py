"""Kept rows: the anchor alone is the teacher of what they predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from calm_graph.data.storage import open_dataset, save_dataset
from calm_graph.errors import InputError, TrainingError
from calm_graph.model.composed import ComposedModel
from calm_graph.states.precompute import precompute
from calm_graph.states.store import open_states
from calm_graph.train import fit
from tests.model.pico import Zoo, train_at_random
from tests.train.conftest import ROWS, MakeModel, quick

KEEP: list[dict[str, Any]] = [
    {"prompt": "hats are", "completion": " keys" + " and pens" * number} for number in range(1, 7)
]


def load(model: ComposedModel, rows: list[dict[str, Any]], *, kept: bool = False) -> Dataset:
    dataset = load_dataset(rows, model.tokenizer, max_length=None)
    return replace(dataset, kept=np.full(len(dataset), kept))


def loss_of(model: ComposedModel, dataset: Dataset) -> float:
    """The summed loss of all samples in one batch."""
    with torch.no_grad():
        return float(model(**dataset.batch(range(len(dataset))), num_items_in_batch=1).loss)


def test_the_loss_is_the_distance_from_the_anchor_of_plain_transformers(make_model: MakeModel) -> None:
    model = make_model()
    dataset = load(model, KEEP, kept=True)
    assert loss_of(model, dataset) == 0, "fresh attachments add nothing"
    train_at_random(model)
    expected = 0.0
    for sample in dataset:
        ids = torch.tensor([sample.input_ids.tolist()])
        predicting = slice(sample.prompt_length - 1, -1)
        with torch.no_grad():
            alone = F.log_softmax(model.anchor(ids).logits[0, predicting], dim=-1)
            composed = model(ids, prompt_lengths=torch.tensor([sample.prompt_length])).logits[0, predicting]
            composed = F.log_softmax(composed, dim=-1)
        expected += float((alone.exp() * (alone - composed)).sum())
    assert expected > 1
    assert loss_of(model, dataset) == pytest.approx(expected, rel=1e-4)


def test_each_row_of_a_batch_has_its_own_loss(make_model: MakeModel) -> None:
    model = make_model()
    train_at_random(model)
    answers, kept = load(model, ROWS[:4]), load(model, KEEP, kept=True)
    both = Dataset.joined([answers, kept])
    batch = both.batch([7, 1, 8, 0])
    assert batch["kept"].tolist() == [True, False, True, False]
    assert "kept" not in both.batch([0, 1]), "nothing is run twice where no row is kept"
    assert loss_of(model, both) == pytest.approx(loss_of(model, answers) + loss_of(model, kept), rel=1e-5)


def test_cached_states_give_the_same_loss(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    train_at_random(model)
    precompute(model.plan.composition, KEEP, out=tmp_path, registry=train_zoo.registry, show="none", dtype="fp32")
    dataset = load(model, KEEP, kept=True)
    cached = open_states(tmp_path, model).join(dataset, KEEP)
    assert loss_of(model, cached) == pytest.approx(loss_of(model, dataset), rel=1e-5)


def test_the_flag_is_stored_and_is_part_of_the_fingerprint(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    both = Dataset.joined([load(model, ROWS[:2]), load(model, KEEP, kept=True)])
    assert [sample.kept for sample in both] == [False] * 2 + [True] * len(KEEP)
    save_dataset(both, tmp_path / "both")
    assert open_dataset(tmp_path / "both").fingerprint() == both.fingerprint()
    assert replace(both, kept=np.zeros(len(both), np.bool_)).fingerprint() != both.fingerprint()


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_learns_the_answers_and_keeps_what_the_anchor_says(
    train_zoo: Zoo, make_model: MakeModel, tmp_path: Path, cached: bool
) -> None:
    distances, losses = [], []
    states: dict[str, Any] = {}
    if cached:
        composition = make_model().plan.composition
        precompute(composition, [*ROWS, *KEEP], out=tmp_path / "s", registry=train_zoo.registry, show="none")
        states = {"states": tmp_path / "s", "registry": train_zoo.registry}
    for keep in (None, KEEP):
        model = make_model()
        settings = quick(max_steps=30, eval_every_steps=30, batch_size=8)
        given = model.plan.composition if cached else model
        result = fit(
            given, data=ROWS, eval_data=ROWS, keep=keep, out=tmp_path / str(keep is None), settings=settings,
            show="none", **states,
        )  # fmt: skip
        model.load_composition_weights(result.checkpoint)
        distances.append(loss_of(model, load(model, KEEP, kept=True)))
        losses.append(result.metrics["eval_loss"])
    assert distances[1] < distances[0] / 2
    assert losses[1] < losses[0] * 1.2


def test_a_cache_belongs_to_the_composition(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(InputError, match="kept: the anchor alone has no cache"):
        model(**load(model, KEEP, kept=True).batch([0]), past_key_values=model.new_cache())


def test_rows_of_one_batch_have_the_same_inputs(make_model: MakeModel, tmp_path: Path) -> None:
    keep = [{**KEEP[0], "augmenter_inputs": {"eye": {"pixels": [0.5, 1.0]}}}]
    with pytest.raises(InputError, match=r"keep: its rows have the augmenter_inputs .*eye.pixels.*data are {}"):
        fit(make_model(), data=ROWS, keep=keep, out=tmp_path, settings=quick(), show="none")


@pytest.mark.parametrize("changes", [{"told_layer": 3}, {"sharding": "fsdp", "num_workers": 2}])
def test_where_rows_cannot_be_kept(make_model: MakeModel, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="keep: rows are kept where answers are trained"):
        fit(make_model(), data=ROWS, keep=KEEP, out=tmp_path, settings=quick(**changes), show="none")
