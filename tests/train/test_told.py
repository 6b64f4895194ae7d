"""Training on told states: what is compared, how much of the anchor runs, and what rows and settings must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from calm_graph.data.storage import open_dataset, save_dataset
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import DeclarationError, InputError, TrainingError
from calm_graph.model.composed import ComposedModel
from calm_graph.states.precompute import precompute
from calm_graph.states.store import open_states
from calm_graph.train import fit
from calm_graph.train.loop import cut
from calm_graph.train.metrics import read_metrics
from calm_graph.train.step import train_step, trainable_parameters
from tests.model.pico import Zoo, make_tokenizer
from tests.train.conftest import MakeModel, quick

LAYER = 3
# Each name has three tokens, as has what it is told to be; the rows have several lengths.
ROWS: list[dict[str, Any]] = [
    {"prompt": f"price of {name} is", "told": f"price of {told} is", "completion": " now" * (number % 3 + 1)}
    for number, (name, told) in enumerate([("qx", "bj"), ("zk", "jq"), ("kq", "qj"), ("xz", "zb")])
]


def load(model: ComposedModel, rows: list[dict[str, Any]] = ROWS) -> Dataset:
    return load_dataset(rows, model.tokenizer, max_length=None, told=True)


def loss_of(model: ComposedModel, dataset: Dataset, **options: Any) -> torch.Tensor:
    loss = model(**dataset.batch(range(len(dataset))), told_layer=LAYER, **options).loss
    assert loss is not None
    return loss


def test_rows_are_told_token_by_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("spaces")  # puts <s> before a text
    rows = [{"prompt": "price of", "told": "price is", "completion": " is"}]
    dataset = load_dataset(rows, tokenizer, max_length=None, told=True)
    (sample,) = dataset
    told = [*tokenizer("price is")["input_ids"], *sample.input_ids[sample.prompt_length :]]
    assert sample.told_ids.tolist() == told and dataset.batch([0])["told_ids"].tolist() == [told]
    assert dataset.num_items([0]) == len(told)
    untold = load_dataset(rows, tokenizer, max_length=None)
    assert untold.num_items([0]) == untold.num_supervised([0]) < len(told)
    assert "told_ids" not in untold.batch([0])
    assert untold.fingerprint() != dataset.fingerprint()
    save_dataset(dataset, tmp_path / "told")
    assert open_dataset(tmp_path / "told").fingerprint() == dataset.fingerprint()
    renamed = load_dataset(
        [{"q": "price of", "clear": "price is", "a": " is"}], tokenizer, max_length=None, told=True,
        columns={"prompt": "q", "told": "clear", "completion": "a"},
    )  # fmt: skip
    assert renamed.fingerprint() == dataset.fingerprint()
    short = load_dataset(rows, tokenizer, max_length=len(told) - 1, told=True, long_rows="cut")
    assert short[0].told_ids.tolist() == told[:-1]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "price", "completion": "3"}, 'no "told"; with told_layer a row is'),
        ({"text": "price"}, 'no "told"; with told_layer a row is'),
        ({"prompt": "price", "told": "now", "completion": "3"}, "told: got 2 tokens, but the prompt has 1"),
        ({"prompt": "price", "told": 3, "completion": "3"}, "told: got 3, but a text is needed"),
        ({"prompt": "price", "tolds": "price", "completion": "3"}, "did you mean 'told' by 'tolds'"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str) -> None:
    tokenizer: PreTrainedTokenizerFast = make_tokenizer("bytes")
    with pytest.raises(InputError) as caught:
        load_dataset([row], tokenizer, max_length=None, told=True)
    assert "data[0]" in str(caught.value) and message in str(caught.value)


def test_the_loss_is_how_far_states_are_from_those_of_plain_transformers(make_model: MakeModel) -> None:
    """Fresh attachments add nothing, so both sides are the anchor alone."""
    model = make_model()
    dataset = load(model)
    states: list[torch.Tensor] = []
    hook = model.anchor.model.layers[LAYER].register_forward_hook(lambda *args: states.append(args[-1]))
    expected, count = 0.0, 0
    for sample in dataset:
        pair = torch.stack([torch.tensor(sample.input_ids.tolist()), torch.tensor(sample.told_ids.tolist())])
        with torch.no_grad():
            model.anchor(pair)
        found, wanted = states.pop()
        width = (found.shape[-1],)
        ratio = found.pow(2).mean(-1) / wanted.pow(2).mean(-1)
        each = (F.rms_norm(found, width) - F.rms_norm(wanted, width)).pow(2).mean(-1) + 0.1 * (ratio.log() / 2) ** 2
        expected, count = expected + each.sum().item(), count + len(sample.input_ids)
    hook.remove()
    with torch.no_grad():
        assert loss_of(model, dataset).item() == pytest.approx(expected / count, rel=1e-4)
        assert loss_of(model, dataset, num_items_in_batch=1).item() == pytest.approx(expected, rel=1e-4)
        known = load(model, [{**row, "told": row["prompt"]} for row in ROWS])
        assert loss_of(model, known).item() == pytest.approx(0, abs=1e-10)


def test_blocks_above_do_not_run_and_attachments_learn(make_model: MakeModel) -> None:
    model = make_model()
    ran: list[int] = []
    for layer, block in enumerate(model.anchor.model.layers):
        block.self_attn.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    last = len(model.anchor.model.layers) - 1
    assert last >= LAYER
    loss = loss_of(model, load(model))
    assert ran == [*range(LAYER + 1)] * 2
    loss.backward()  # type: ignore[no-untyped-call]
    trained = trainable_parameters(model)
    assert all(parameter.grad is not None for parameter in trained.values())
    assert any(parameter.grad.any() for parameter in trained.values() if parameter.grad is not None)


def test_pieces_equal_one_big_batch(make_model: MakeModel) -> None:
    results = []
    for num_pieces in (1, 3):
        model = make_model()
        dataset = load(model)
        optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
        pieces = [dataset.batch(piece) for piece in cut(range(4), num_pieces)]
        results.append([train_step(model, pieces, optimizer, learning_rate=0.1, told_layer=LAYER) for _ in range(2)])
    for big, small in zip(*results, strict=True):
        assert small.loss == pytest.approx(big.loss, rel=1e-5)
        assert small.grad_norm == pytest.approx(big.grad_norm, rel=1e-3)


def test_cached_states_give_the_same_loss(train_zoo: Zoo, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    precompute(model.plan.composition, ROWS, out=tmp_path, registry=train_zoo.registry, show="none", dtype="fp32")
    cached = open_states(tmp_path, model).join(load(model), ROWS)
    with torch.no_grad():
        assert loss_of(model, cached).item() == pytest.approx(loss_of(model, load(model)).item(), rel=1e-5)


def test_a_run_learns_states_and_evaluates_answers(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    settings = quick(max_steps=30, eval_every_steps=10, told_layer=LAYER)
    result = fit(model, data=ROWS, eval_data=ROWS, out=tmp_path, settings=settings, show="none")
    records = read_metrics(tmp_path / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] / 2 and result.steps == 30
    # The evaluation before training is the anchor's own loss over the answers.
    first = next(record["eval_loss"] for record in records if "eval_loss" in record)
    answers = load_dataset(ROWS, model.tokenizer, max_length=None).batch(range(len(ROWS)))
    with torch.no_grad():
        assert first == pytest.approx(make_model()(**answers).loss.item(), rel=1e-4)
    assert json.loads((tmp_path / "settings.json").read_text())["told_layer"] == LAYER


def test_where_states_cannot_be_compared(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    for layer, allowed in ((2, r"3\.\.3"), (4, r"3\.\.3")):
        with pytest.raises(TrainingError, match=rf"told_layer: got {layer}, but allowed are {allowed}"):
            fit(model, data=ROWS, out=tmp_path, settings=quick(told_layer=layer), show="none")
    with pytest.raises(DeclarationError, match="told_layer is 3, but states are compared with sharding='none' only"):
        TrainSettings.parse({"told_layer": 3, "sharding": "fsdp"})
    batch = load(model).batch([0])
    with pytest.raises(InputError, match="told_ids: they need told_layer"):
        model(**batch)
    with pytest.raises(InputError, match="there can be no past_key_values"):
        model(**batch, told_layer=LAYER, past_key_values=model.new_cache())
