"""A composition whose augmenters run in ONNX Runtime gives the numbers that it gives with torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from calm_graph import Augmenter, Composition, every, fit
from calm_graph.augmenters.onnx_backend import OnnxBackend
from calm_graph.augmenters.onnx_session import OnnxSettings
from calm_graph.errors import CheckpointError, InputError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.states.precompute import precompute
from calm_graph.train.metrics import read_metrics
from registry import Registry
from tests.augmenters.exports import Exports
from tests.model.cases import decoding_batch, encoded
from tests.model.pico import Zoo, train_at_random
from tests.train.conftest import quick

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
ATTACH = every(1)
AUGMENTERS = {
    "same": Augmenter("same", attach=ATTACH),
    "other": Augmenter("other", attach=ATTACH, prompt_visibility="causal"),
    "prompt": Augmenter("other", attach=ATTACH, reading="prompt"),
    "encoder": Augmenter("reader", attach=ATTACH, reading="prompt"),
}


def saved(zoo: Zoo, tmp_path: Path, *augmenters: Augmenter) -> tuple[ComposedModel, Path]:
    model = zoo.compose(*augmenters)
    model.save_pretrained(tmp_path / "trained")
    return model, tmp_path / "trained"


def pair(zoo: Zoo, exports: Exports, tmp_path: Path, case: str) -> tuple[ComposedModel, ComposedModel]:
    """The composition in torch, and the same checkpoint with its augmenter in ONNX."""
    augmenter = AUGMENTERS[case]
    model, folder = saved(zoo, tmp_path, augmenter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # float32 states are the same, so there is nothing to warn of
        swapped = ComposedModel.from_pretrained(folder, registry=zoo.registry, exports=[exports.folder(augmenter.key)])
    (backend,) = swapped.graph.backends.values()
    assert isinstance(backend, OnnxBackend)
    return model, swapped


@pytest.mark.parametrize("case", AUGMENTERS)
def test_the_full_forward_is_torchs(zoo: Zoo, exports: Exports, tmp_path: Path, case: str) -> None:
    model, swapped = pair(zoo, exports, tmp_path, case)
    ids, mask, lengths, _ = decoding_batch(model)
    with torch.no_grad():
        expected = model(ids, mask, prompt_lengths=lengths).logits
        found = swapped(ids, mask, prompt_lengths=lengths).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("case", AUGMENTERS)
def test_token_by_token_is_the_full_forward(zoo: Zoo, exports: Exports, tmp_path: Path, case: str) -> None:
    _, model = pair(zoo, exports, tmp_path, case)
    ids, mask, lengths, width = decoding_batch(model)
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, mask, prompt_lengths=lengths).logits
        pieces = [model(ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths).logits]
        for end in range(width + 1, ids.shape[1] + 1):
            pieces.append(model(ids[:, end - 1 : end], mask[:, :end], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask.bool()], expected[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("case", ["same", "other"])
def test_rejected_tokens_leave_no_trace(zoo: Zoo, exports: Exports, tmp_path: Path, case: str) -> None:
    _, model = pair(zoo, exports, tmp_path, case)
    ids, mask, lengths, width = decoding_batch(model)
    end, cache = width + 7, model.new_cache()
    with torch.no_grad():
        model(ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths)
        model(ids[:, width:end].flip(0), mask[:, :end], past_key_values=cache)
        cache.crop(-7)
        found = model(ids[:, width:end], mask[:, :end], past_key_values=cache).logits
        expected = model(ids, mask, prompt_lengths=lengths).logits[:, width:end]
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_generate_and_beams_are_torchs(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    model, swapped = pair(zoo, exports, tmp_path, "other")
    ids, mask = encoded(model, ("price of apples is 3 and", "Hello"))
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "use_cache": False}):
        options |= {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(
            swapped.generate(ids, attention_mask=mask, **options), model.generate(ids, attention_mask=mask, **options)
        )


def test_an_image_encoder(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    model, folder = saved(zoo, tmp_path, Augmenter("eye", attach=ATTACH, reading="prompt"))
    swapped = ComposedModel.from_pretrained(folder, registry=zoo.registry, exports=[exports.folder("eye")])
    ids, mask = encoded(model, ("Hello", "price of"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids, mask, augmenter_inputs={"eye": {"pixel_values": pixels}}).logits
        found = swapped(ids, mask, augmenter_inputs={"eye": {"pixel_values": pixels}}).logits
    torch.testing.assert_close(found, expected, **TOLERANCE)
    with pytest.raises(InputError, match=r"augmenter_inputs\['eye'\]: got \['pixels'\], but the model takes"):
        swapped(ids, mask, augmenter_inputs={"eye": {"pixels": pixels}})


def test_training_reads_an_export(zoo: Zoo, exports: Exports) -> None:
    composition = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("other", attach=ATTACH)])
    in_onnx = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("other", attach=ATTACH, runtime="onnx")])
    registry = Registry(zoo.registry)
    registry.add_folder(exports.folder("other"))
    found = []
    for declared in (composition, in_onnx):
        model = build_model(declared, registry=registry, seed=0)
        train_at_random(model)
        ids, mask = encoded(model, ("Hello world, this is", "price of apples is 3"))
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :4] = -100
        loss = model(ids, mask, labels=labels).loss
        loss.backward()
        found.append((loss, {name: each.grad for name, each in model.attachments.named_parameters()}))
    (loss, gradients), (onnx_loss, onnx_gradients) = found
    torch.testing.assert_close(onnx_loss, loss, **TOLERANCE)
    assert gradients.keys() == onnx_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(onnx_gradients[name], gradient, **TOLERANCE)


def test_a_run_and_its_cached_states_read_an_export(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    """Four steps in torch, in ONNX, and on states that ONNX computed beforehand: one loss trace, one answer."""
    registry = Registry(zoo.registry)
    registry.add_folder(exports.folder("other"))
    rows = [{"prompt": f"price of lamp {number} is", "completion": f" {number}"} for number in range(8)]
    settings = quick(max_steps=4, warmup_steps=1)
    traces, answers = {}, set()
    for case, runtime in (("torch", "torch"), ("onnx", "onnx"), ("cached", "onnx")):
        augmenter = Augmenter("other", attach=ATTACH, runtime=runtime)
        composition = Composition(name="desk", anchor="anchor", augmenters=[augmenter])
        states = None
        if case == "cached":
            states = tmp_path / "states"
            precompute(composition, rows, out=states, dtype="fp32", registry=registry, show="none")
        out = tmp_path / case
        fit(composition, data=rows, out=out, settings=settings, registry=registry, show="none", states=states)
        traces[case] = [record["loss"] for record in read_metrics(out / "metrics.jsonl") if "loss" in record]
        model = ComposedModel.from_pretrained(out, registry=registry)
        ids, mask = encoded(model, ("price of lamp 3 is",))
        answers.add(tuple(model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[0].tolist()))
    assert len(traces["torch"]) == 4
    assert traces["onnx"] == pytest.approx(traces["torch"], rel=1e-5)
    assert traces["cached"] == pytest.approx(traces["onnx"], rel=1e-6)
    assert len(answers) == 1


def test_a_declared_runtime_survives_saving(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    registry = Registry(zoo.registry)
    registry.add_folder(exports.folder("other"))
    declared = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("other", attach=ATTACH, runtime="onnx")])
    model = build_model(declared, registry=registry, seed=0)
    model.save_pretrained(tmp_path / "trained")
    for known in (registry, Registry([zoo.registry.get("anchor")])):  # the second has only what the checkpoint keeps
        again = ComposedModel.from_pretrained(tmp_path / "trained", registry=known)
        assert isinstance(next(iter(again.graph.backends.values())), OnnxBackend)


def test_a_swapped_composition_saves_as_the_same_composition(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    _, swapped = pair(zoo, exports, tmp_path, "other")
    swapped.save_pretrained(tmp_path / "again")
    first, second = (json.loads((tmp_path / name / "composition.json").read_text()) for name in ("trained", "again"))
    assert first["composition"] == second["composition"]
    assert first["models"]["other"]["fingerprint"] == second["models"]["other"]["fingerprint"]
    ComposedModel.from_pretrained(tmp_path / "again", registry=zoo.registry)  # in torch again


def test_shifted_states_are_told(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    _, folder = saved(zoo, tmp_path, AUGMENTERS["other"])
    export = exports.folder("other", "int8")
    with pytest.warns(
        UserWarning, match=r"'other' runs int8 in ONNX, .* trained on it in torch: cosine of the states 0"
    ):
        ComposedModel.from_pretrained(folder, registry=zoo.registry, exports=[export])


def test_an_export_of_another_model_is_refused(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    _, folder = saved(zoo, tmp_path, AUGMENTERS["same"])
    with pytest.raises(CheckpointError, match=r"was exported from sha256:.*trained with .*'same' sha256:"):
        ComposedModel.from_pretrained(folder, registry=zoo.registry, exports=[exports.folder("other")])


def test_a_text_beyond_the_context_is_refused(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    _, model = pair(zoo, exports, tmp_path, "prompt")
    long = "a b c d " * 30
    ids, mask = encoded(model, ("Hello",))
    with pytest.raises(InputError, match=r"augmenter 'other': the text has .* tokens, but its context holds 192"):
        model(ids, mask, prompt_lengths=mask.sum(dim=1), prompt_texts=[long])


def test_threads_are_set(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    _, folder = saved(zoo, tmp_path, AUGMENTERS["same"])
    model = ComposedModel.from_pretrained(
        folder, registry=zoo.registry, exports=[exports.folder("same")], onnx=OnnxSettings(num_threads=2)
    )
    (backend,) = model.graph.backends.values()
    assert backend.session.num_threads == 2
