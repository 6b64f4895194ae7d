"""Whole runs whose batches have a budget of tokens instead of a number of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import InputError
from calm_graph.model.composed import ComposedModel
from calm_graph.train import TrainResult, fit
from calm_graph.train import loop as loop_module
from calm_graph.train.metrics import read_metrics
from tests.train.conftest import HELD_OUT, ROWS, MakeModel, quick

BUDGET = 60


def train(model: ComposedModel, out: Path, settings: TrainSettings, **options: Any) -> TrainResult:
    return fit(model, **{"data": ROWS, "eval_data": HELD_OUT, **options}, out=out, settings=settings, show="none")


def test_no_batch_is_above_the_budget_and_a_resumed_run_goes_on_with_the_same_samples(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A learning rate that does not depend on the number of steps, so that the same run can be made in two halves.
    settings = quick(tokens_per_batch=BUDGET, max_steps=14, min_lr_ratio=1.0)
    shapes: list[torch.Size] = []

    def seen(model: Any, pieces: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.extend(piece["input_ids"].shape for piece in pieces)
        return original(model, pieces, *args, **kwargs)

    original = loop_module.train_step
    monkeypatch.setattr(loop_module, "train_step", seen)
    whole, resumed = make_model(), make_model()
    train(whole, tmp_path / "whole", settings)
    assert len(shapes) == 14 and all(shape.numel() <= BUDGET for shape in shapes)
    assert len({shape[0] for shape in shapes}) > 1
    epochs = [record["epoch"] for record in read_metrics(tmp_path / "whole/metrics.jsonl") if "epoch" in record]
    assert epochs[10] > 1 and epochs[10] % 1  # the second half begins inside a later epoch
    train(make_model(), tmp_path / "halves", settings.updated(max_steps=10))
    train(resumed, tmp_path / "halves", settings, resume=True)
    assert shapes[14:] == shapes[:14]
    for name, tensor in whole.attachments.state_dict().items():
        assert torch.equal(resumed.attachments.state_dict()[name], tensor), name


def test_a_row_above_the_budget_is_treated_as_too_long(make_model: MakeModel, tmp_path: Path) -> None:
    long = {"prompt": "price", "completion": " now" * BUDGET}
    settings = quick(tokens_per_batch=BUDGET, max_steps=2)
    with pytest.raises(
        InputError, match=rf"data\[0\]: got \d+ tokens, but at most {BUDGET} are allowed \(max_length, tok"
    ):
        train(make_model(), tmp_path / "error", settings, data=[long, *ROWS])
    cut = settings.updated(long_rows="cut")
    assert train(make_model(), tmp_path / "cut", cut, data=[long, *ROWS]).steps == 2
