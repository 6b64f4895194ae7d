"""States that are given instead of computed: every architecture of the table can start above its first blocks."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from calm_graph import Augmenter
from calm_graph.errors import InputError
from calm_graph.model.composed import ComposedModel
from calm_graph.model.stored import StoredStates
from registry.layouts import LAYOUTS, blocks
from tests.model.pico import Zoo

DECODERS = [name for name, layout in LAYOUTS.items() if layout.causal and layout.modality == "text"]
LAYER = 1
LENGTHS = (9, 5)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("reading", "llama", seed=99)
    return zoo


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 48, (2, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    labels = ids.masked_fill(~mask, -100)
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def states(folder: Path, name: str, layer: int) -> StoredStates:
    """What transformers' own model says after one of its blocks, watched with a hook of its own."""
    inputs = batch()
    model = AutoModel.from_pretrained(folder / name, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    blocks(model)[layer].register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"].long(), use_cache=False)
    flat = seen[0][inputs["attention_mask"]]
    return StoredStates(layers=(layer,), lengths_B=torch.tensor(LENGTHS), states_RLC=flat[:, None])


def composed(zoo: Zoo, anchor: str) -> ComposedModel:
    return zoo.compose(Augmenter("reading", attach=[{"augmenter_layer": 2, "anchor_layer": 2}]), anchor=anchor)


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_anchor_can_start_above_its_first_blocks(zoo: Zoo, architecture: str) -> None:
    if architecture == "gemma3":
        pytest.skip("a wrapper, loaded as the gemma3_text inside it")
    zoo.add(architecture, architecture)
    model = composed(zoo, architecture)
    given = {
        architecture: states(zoo.folder, architecture, LAYER),
        "reading": states(zoo.folder, "reading", 2),
    }
    ran: list[int] = []
    for layer, block in enumerate(blocks(model.anchor)):
        next(block.children()).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    plain = model(**batch())
    plain.loss.backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    ran.clear()
    found = model(**batch(), stored_states=given)
    assert set(ran) == {2, 3}
    found.loss.backward()
    torch.testing.assert_close(found.loss, plain.loss, rtol=1e-5, atol=1e-6)
    for name, each in model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(each.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_nothing_stays_behind_and_copies_are_independent(zoo: Zoo) -> None:
    zoo.add("anchor", "llama", seed=1)
    model = composed(zoo, "anchor")
    expected = model(**batch()).logits
    wrong = states(zoo.folder, "anchor", LAYER)
    wrong = StoredStates(layers=(LAYER,), lengths_B=wrong.lengths_B, states_RLC=wrong.states_RLC[..., :3])
    with pytest.raises(RuntimeError):
        model(**batch(), stored_states={"anchor": wrong, "reading": states(zoo.folder, "reading", 2)})
    assert torch.equal(model(**batch()).logits, expected)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.anchor.parameters():
            parameter.zero_()
    assert torch.equal(model(**batch()).logits, expected)
    assert not torch.equal(other(**batch()).logits, expected)


def test_a_start_above_an_attachment_or_a_missing_layer_is_refused(zoo: Zoo) -> None:
    zoo.add("anchor", "llama", seed=1)
    model = composed(zoo, "anchor")
    reading = states(zoo.folder, "reading", 2)
    with pytest.raises(InputError, match=r"\['anchor'\]: got layer 3, but the first that is attached is 2"):
        model(**batch(), stored_states={"anchor": states(zoo.folder, "anchor", 3), "reading": reading})
    with pytest.raises(InputError, match=r"\['reading'\]: got layers \[1\], but layers \[2\] are read too"):
        model(**batch(), stored_states={"reading": states(zoo.folder, "reading", 1)})
