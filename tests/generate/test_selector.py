"""Requests wake only the augmenters that are chosen for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calm_graph.errors import CheckpointError, InputError
from calm_graph.generate.engine import Engine
from calm_graph.generate.selector import LearnedSelector, Prompt, mean_state, read_selector
from tests.generate.test_engine import TEXTS, alone, ask, ids_of, run, tokens
from tests.model.cases import compose
from tests.model.pico import Zoo


def only_same(prompt: Prompt) -> list[str]:
    """Choose one augmenter, and it only for some prompts."""
    return ["same"] if "fox" in prompt.text else []


def test_what_is_not_chosen_does_not_run(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    engine = Engine({"c": model}, selectors={"c": only_same})
    found = run(engine, *[ask(model, prompt, id=prompt) for prompt in TEXTS[:3]])
    off = {"same": 0.0, "window": 0.0, "reader": 0.0}
    for prompt in TEXTS[:3]:
        scales = {**off, **({"same": 0.5} if "fox" in prompt else {})}
        assert tokens(found[prompt]) == alone(model, prompt, 12, scales=scales)
    statistics = engine.statistics()
    assert {*statistics.augmenter_tokens} == {"same"}
    assert statistics.skipped_tokens["window"] == sum(len(ids_of(model, prompt)) for prompt in TEXTS[:3])
    assert statistics.saved_flops["window"] > statistics.skipped_tokens["window"]


def test_what_a_request_names_is_not_asked_about(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    engine = Engine({"c": model}, selectors={"c": only_same})
    run(engine, ask(model, "so", scales={"window": 1.0}))
    assert {*engine.statistics().augmenter_tokens} == {"window"}


def test_a_selector_that_fails_ends_its_request_alone(zoo: Zoo) -> None:
    model = compose(zoo, "same")

    def choose(prompt: Prompt) -> list[str]:
        if "fox" in prompt.text:
            raise RuntimeError("no route to host")
        return ["same"]

    engine = Engine({"c": model}, selectors={"c": choose})
    for prompt in TEXTS[:3]:
        engine.add(ask(model, prompt, id=prompt))
    results = []
    while engine.has_work:
        results += engine.step()
    failed = {id: output for id, output in results if isinstance(output, Exception)}
    assert {*failed} == {TEXTS[1]} and "no route to host" in str(failed[TEXTS[1]])
    for prompt in (TEXTS[0], TEXTS[2]):
        assert tokens([output for id, output in results if id == prompt]) == alone(model, prompt, 12)


def test_a_selector_that_chooses_something_else_is_an_error(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model}, selectors={"c": lambda prompt: ["sane"]})
    with pytest.raises(InputError, match=r"chose \['sane'\], but it may choose among same"):
        run(engine, ask(model, "so"))


def test_a_gate_is_kept_in_a_file(zoo: Zoo, tmp_path: Path) -> None:
    model = compose(zoo, "mixed")
    weights_AD = torch.randn(2, model.plan.anchor.hidden_size, generator=torch.Generator().manual_seed(0))
    gate = LearnedSelector(
        model, layer=1, names=("same", "window"), weights_AD=weights_AD, biases_A=torch.tensor([0.2, -0.1])
    )
    file = tmp_path / "gate.safetensors"
    gate.save(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    again = read_selector(str(file), model)
    assert isinstance(again, LearnedSelector)
    ids = ids_of(model, TEXTS[0])
    likely = again.probabilities(ids)
    assert likely == gate.probabilities(ids) and {*likely} == {"same", "window"}
    # What it does not know is always worth running.
    chosen = again(Prompt(TEXTS[0], tuple(ids), ("same", "window", "reader")))
    assert chosen == [name for name in ("same", "window") if likely[name] >= 0.5] + ["reader"]
    with pytest.raises(CheckpointError, match="was made for same, window"):
        LearnedSelector.load(file, compose(zoo, "other"))
    file.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is no selector"):
        LearnedSelector.load(file, model)


def test_states_are_read_without_the_blocks_above(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    ids = ids_of(model, TEXTS[1])
    with torch.no_grad():
        states = model.anchor.model(torch.tensor([ids]), output_hidden_states=[2]).hidden_states[2]
    sizes_T1 = states[0].square().mean(dim=-1, keepdim=True).sqrt()
    torch.testing.assert_close(mean_state(model, ids, layer=1), (states[0] / sizes_T1).mean(dim=0))
    counted: list[int] = []
    handle = model.anchor.model.layers[2].register_forward_hook(lambda *_: counted.append(1))
    mean_state(model, ids, layer=1)
    handle.remove()
    assert not counted


def test_functions_are_found_by_name(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    assert read_selector("tests.generate.test_selector:only_same", model) is only_same
    for text in ("tests.generate.test_selector:nothing", "nowhere:f", "nothing"):
        with pytest.raises(InputError, match=f"selector: got '{text}'"):
            read_selector(text, model)
