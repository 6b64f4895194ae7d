"""One optimiser step: what it averages over, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Batch, Dataset
from calm_graph.errors import TrainingError
from calm_graph.train.loop import cut
from calm_graph.train.step import (
    NonFiniteError,
    count_items,
    learning_rate_at,
    make_optimizer,
    train_step,
    trainable_parameters,
)
from tests.train.conftest import ROWS, MakeModel, quick


def pieces_of(dataset: Dataset, num_pieces: int) -> list[Batch]:
    return [dataset.batch(piece) for piece in cut(range(8), num_pieces)]


def test_pieces_equal_one_big_batch(make_model: MakeModel) -> None:
    trained = {}
    for num_pieces in (1, 2, 8):
        model = make_model()
        dataset = load_dataset(ROWS, model.tokenizer, max_length=None)
        # Pieces of unequal numbers of supervised tokens are what a mean of means would get wrong.
        counts = [count_items([piece]) for piece in pieces_of(dataset, 8)]
        assert len(set(counts)) > 1
        optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=1.0)
        results = [
            train_step(model, pieces_of(dataset, num_pieces), optimizer, learning_rate=1.0, max_grad_norm=1.0)
            for _ in range(3)
        ]
        trained[num_pieces] = (model, results)
    for num_pieces in (2, 8):
        for big, small in zip(trained[1][1], trained[num_pieces][1], strict=True):
            assert small.loss == pytest.approx(big.loss, rel=1e-5)
            assert small.grad_norm == pytest.approx(big.grad_norm, rel=1e-3)
        other = trainable_parameters(trained[num_pieces][0])
        for name, parameter in trainable_parameters(trained[1][0]).items():
            torch.testing.assert_close(other[name], parameter, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_supervised_tokens(make_model: MakeModel) -> None:
    """Fresh attachments add nothing, so the anchor alone, in plain transformers, is the reference."""
    model = make_model()
    dataset = load_dataset(ROWS, model.tokenizer, max_length=None)
    total, count = 0.0, 0
    for index in range(8):
        sample = dataset[index]
        with torch.no_grad():
            logits = model.anchor(input_ids=torch.from_numpy(sample.input_ids).long()[None]).logits[0].log_softmax(-1)
        for position in range(sample.prompt_length, len(sample.input_ids)):
            total -= logits[position - 1, int(sample.input_ids[position])].item()
            count += 1
    result = train_step(model, pieces_of(dataset, 1), make_optimizer(model, quick()), learning_rate=0.0)
    assert count == count_items(pieces_of(dataset, 1))
    assert result.loss == pytest.approx(total / count, rel=1e-4)


def test_only_attachments_are_trained_and_frozen_bytes_stay(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = make_optimizer(model, quick())
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.attachments.parameters()}
    dataset = load_dataset(ROWS, model.tokenizer, max_length=None)
    for _ in range(2):
        train_step(model, pieces_of(dataset, 2), optimizer, learning_rate=1e-2)
    trained = set(trainable_parameters(model))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trained
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_no_number_updates_nothing(make_model: MakeModel) -> None:
    model = make_model()
    dataset = load_dataset(ROWS, model.tokenizer, max_length=None)
    optimizer = make_optimizer(model, quick())
    train_step(model, pieces_of(dataset, 2), optimizer, learning_rate=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
    calls = []

    def spoil(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * math.nan if len(calls) == 2 else output

    handle = model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="the loss is not a finite number") as caught:
        train_step(model, pieces_of(dataset, 4), optimizer, learning_rate=1e-2)
    handle.remove()
    assert caught.value.pieces == ((0, 1),)
    assert all(torch.equal(p, before[name]) for name, p in trainable_parameters(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_autocast_keeps_float32_weights(make_model: MakeModel) -> None:
    model = make_model()
    dataset = load_dataset(ROWS, model.tokenizer, max_length=None)
    result = train_step(
        model, pieces_of(dataset, 1), make_optimizer(model, quick()), learning_rate=1e-3, precision="bf16"
    )
    assert math.isfinite(result.loss)
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(TrainingError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), quick())


def test_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = quick(max_steps=12, warmup_steps=2, learning_rate=1.0, min_lr_ratio=0.1)
    rates = [learning_rate_at(step, settings) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 5 / 9)) / 2)


def test_norms_and_gates_do_not_decay(make_model: MakeModel) -> None:
    optimizer = make_optimizer(make_model(), quick(weight_decay=0.5))
    decays = {p.ndim >= 2: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.5, False: 0.0}
