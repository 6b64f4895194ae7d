"""Training on cached states is training: the same losses, without the models that the states are of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_graph import Augmenter, Composition, every, fit
from calm_graph.errors import InputError
from calm_graph.model import runtimes as runtimes_module
from calm_graph.model.composed import ComposedModel
from calm_graph.states.precompute import precompute
from calm_graph.train import job as job_module
from calm_graph.train.metrics import read_metrics
from tests.model.pico import Zoo
from tests.states.conftest import HELD_OUT, OTHER, ROWS, SAME, composed
from tests.train.conftest import quick

SETTINGS = quick(max_steps=12, eval_every_steps=4, checkpoint_every_steps=12, warmup_steps=1)

CASES: dict[str, Callable[[], Composition]] = {
    "same tokenizer": lambda: composed(SAME),
    "other tokenizer": lambda: composed(Augmenter("other", attach=every(2))),
    "prompt": lambda: composed(OTHER),
    "template": lambda: composed(
        Augmenter("same", attach=every(2), reading="prompt", prompt_template="Q: {prompt} A:")
    ),
    "two": lambda: composed(SAME, Augmenter("other", attach=every(2))),
    "trained composition": lambda: composed(Augmenter("saved", attach=every(2))),
    "switched off": lambda: composed(SAME, Augmenter("other", attach=every(2), scale=0.0)),
}


def trace(out: Path) -> list[float]:
    records = read_metrics(out / "metrics.jsonl")
    return [record.get("loss", record.get("eval_loss", 0.0)) for record in records]


def train(composition: Composition, zoo: Zoo, out: Path, **options: Any) -> list[float]:
    fit(
        composition,
        data=ROWS,
        eval_data=HELD_OUT,
        out=out,
        settings=options.pop("settings", SETTINGS),
        registry=zoo.registry,
        show="none",
        **options,
    )
    return trace(out)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("anchor", [True, False], ids=["anchor", "no anchor"])
def test_the_loss_trace_is_that_of_training_without_a_cache(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, anchor: bool
) -> None:
    composition = CASES[case]()
    expected = train(composition, zoo, tmp_path / "plain")
    precompute(
        composition, ROWS, HELD_OUT, out=tmp_path / "states", dtype="fp32", anchor=anchor, registry=zoo.registry,
        show="none", shard_bytes=40_000, batch_size=3,
    )  # fmt: skip
    monkeypatch.setattr(runtimes_module, "load_body", None)  # no augmenter can be loaded from here on
    found = train(composition, zoo, tmp_path / "cached", states=tmp_path / "states")
    assert len(found) == 12 + 4
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(expected[-1] - expected[0]) > 1e-3  # the attachments matter by far more than that
    monkeypatch.undo()
    loaded = ComposedModel.from_pretrained(tmp_path / "cached", registry=zoo.registry)
    plain = ComposedModel.from_pretrained(tmp_path / "plain", registry=zoo.registry)
    assert loaded.attachments.state_dict().keys() == plain.attachments.state_dict().keys()
    descriptions = [(tmp_path / name / "composition.json").read_text() for name in ("cached", "plain")]
    assert descriptions[0] == descriptions[1]  # with the fingerprints of what was not loaded


def test_only_the_anchor_and_the_attachments_are_in_memory(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composition = composed(SAME, OTHER)
    precompute(composition, ROWS, out=tmp_path / "states", registry=zoo.registry, show="none")
    built: list[ComposedModel] = []

    def build(*args: Any, **kwargs: Any) -> ComposedModel:
        built.append(original(*args, **kwargs))
        return built[0]

    original = job_module.build_model
    monkeypatch.setattr(job_module, "build_model", build)
    fit(
        composition, data=ROWS, out=tmp_path / "out", settings=quick(max_steps=2), registry=zoo.registry, show="none",
        states=tmp_path / "states",
    )  # fmt: skip
    names = {name.partition(".")[0] + "." + name.split(".")[1] for name, _ in built[0].named_parameters()}
    assert names <= {"anchor.model", "anchor.lm_head", "graph.edges"}
    with pytest.raises(InputError, match="built without its augmenters' weights"):
        built[0](torch.tensor([[5, 6, 7]]))


def test_the_first_blocks_of_the_anchor_do_not_run(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo.compose(SAME)
    precompute(model.plan.composition, ROWS, out=tmp_path, registry=zoo.registry, show="none", dtype="fp32")
    from calm_graph.data.load import load_dataset
    from calm_graph.states.store import open_states

    store = open_states(tmp_path, model)
    batch = store.join(load_dataset(ROWS, model.tokenizer, max_length=None), ROWS).batch(range(4))
    ran: list[int] = []
    for layer, block in enumerate(model.anchor.model.layers):
        block.self_attn.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    with torch.no_grad():
        cached = model(**batch)
        assert ran == [2, 3]  # attached at 1 and 3
        ran.clear()
        del batch["stored_states"]
        plain = model(**batch)
        assert ran == [0, 1, 2, 3]
    torch.testing.assert_close(cached.loss, plain.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
def test_narrower_states_change_the_losses_little(zoo: Zoo, tmp_path: Path, dtype: Any, tolerance: float) -> None:
    composition = composed(SAME)
    expected = train(composition, zoo, tmp_path / "plain")
    precompute(composition, ROWS, HELD_OUT, out=tmp_path / "states", dtype=dtype, registry=zoo.registry, show="none")
    found = train(composition, zoo, tmp_path / "cached", states=tmp_path / "states")
    assert found == pytest.approx(expected, rel=tolerance)
    assert found != expected
