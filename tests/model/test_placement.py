"""Models on several devices. There is no second device here but `meta`, which knows where tensors are, not more.

A forward on `meta` is impossible (ids must be looked at), so the graph is driven by itself: augmenters on the CPU, the
models they write into on `meta`.
"""

from __future__ import annotations

import pytest
import torch

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import InputError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.model.request import Request
from tests.model.cases import CASES
from tests.model.pico import Zoo

META, CPU = torch.device("meta"), torch.device("cpu")


def placed(zoo: Zoo, case: str, placement: dict[str, str]) -> ComposedModel:
    composition = Composition(name="placed", anchor="anchor", augmenters=CASES[case])
    return build_model(composition, registry=zoo.registry, seed=0, placement=placement)


def places(module: torch.nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in (*module.parameters(), *module.buffers())}


def begun(model: ComposedModel) -> Request:
    ids = torch.arange(5, 25).view(2, 10)
    tokens = model.anchor_tokens(ids, None)
    request = model.graph.new_request(keeps=True)
    lengths = torch.tensor([4, 6])
    model.graph.begin(request, tokens, prompt_lengths=lengths, prompt_texts=None, inputs={})
    model.graph.push(request, tokens)
    return request


def test_attachments_go_with_the_model_they_write_into(zoo: Zoo) -> None:
    model = placed(zoo, "nested", {"anchor": "meta", "same": "cpu", "other": "cpu"})
    assert places(model.anchor) == {META}
    assert places(model.graph.backends) == {CPU}
    for key, attachment in model.attachments.items():
        assert places(attachment) == {META if key.endswith(("_to_anchor@1", "_to_anchor@3")) else CPU}


def test_models_that_are_not_named_go_with_the_anchor(zoo: Zoo) -> None:
    model = placed(zoo, "diamond", {"anchor": "meta", "other": "cpu"})
    assert places(model.graph.backend("inner")) == {META}
    assert places(model.graph.backend("other")) == {CPU}
    assert places(placed(zoo, "same", {"same": "meta"}).anchor) == {CPU}


@pytest.mark.parametrize("case", ["same", "other", "rotary", "distance", "nested"])
def test_states_cross_over_and_what_counts_tokens_does_not(zoo: Zoo, case: str) -> None:
    names = {"same", "second", "other"}
    model = placed(zoo, case, {"anchor": "meta"} | {name: "cpu" for name in names if name in used(case)})
    request = begun(model)
    for (_, target), context in request.contexts.items():
        assert {tensor.device for layer in context.layers.values() for tensor in layer} == {
            META if target == "anchor" else CPU
        }
        assert context.threshold_BS.device == context.known_at_BS.device == CPU
    index_BT = torch.arange(10).expand(2, -1)
    writes = model.graph.edges.writes("anchor", request, index_BT=index_BT)
    assert sorted(writes) == [1, 3]
    for write in writes.values():
        written = write(torch.empty(2, 10, 16, device="meta"))
        assert written.device == META and written.shape == (2, 10, 16)
    request.select(torch.tensor([1, 1, 0]))
    request.drop_last(2)
    assert all(len(keys) == 3 for context in request.contexts.values() for keys, _ in context.layers.values())


def used(case: str) -> set[str]:
    return {"nested": {"same", "other"}, "rotary": {"same", "second"}, "distance": {"same", "second"}}.get(case, {case})


def test_one_device_is_as_none(zoo: Zoo) -> None:
    one, two = placed(zoo, "other", {"anchor": "cpu", "other": "cpu"}), placed(zoo, "other", {})
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(one(ids).logits, two(ids).logits)


def test_mistakes_are_told_before_anything_is_loaded(zoo: Zoo) -> None:
    with pytest.raises(InputError, match=r"placement: got 'othr', but the models of this composition are \['anchor'"):
        placed(zoo, "other", {"othr": "cpu"})
    with pytest.raises(InputError, match=r"placement\['other'\]: got 'gpu7'"):
        placed(zoo, "other", {"other": "gpu7"})
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"placement\['other'\]: got 'cuda:1': "):
            placed(zoo, "other", {"other": "cuda:1"})


def test_a_name_of_a_nested_model_counts(zoo: Zoo) -> None:
    composition = Composition(name="flat", anchor="anchor", augmenters=[Augmenter("second", attach=every(4))])
    model = build_model(composition, registry=zoo.registry, placement={"second": "meta"})
    assert places(model.graph.backend("second")) == {META}
