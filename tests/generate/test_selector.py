"""Requests wake only the augmenters that are chosen for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calm_graph.errors import CheckpointError, InputError
from calm_graph.generate.engine import Engine
from calm_graph.generate.selector import LearnedSelector, Prompt, fit_selector, mean_state, read_selector
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


def test_a_gate_learns_whom_a_prompt_needs(zoo: Zoo, tmp_path: Path) -> None:
    model = compose(zoo, "mixed")
    # The completion is what the composition says with the augmenter for one kind of prompt, and without it for others.
    rows = []
    for number in range(56):
        with_it = number % 2 == 0
        prompt = f"price of apples is {number}" if with_it else f"The quick brown fox {number}"
        scales = {"same": 0.5 if with_it else 0.0, "window": 1.0, "reader": 1.0}
        rows.append((prompt, model.tokenizer.decode(alone(model, prompt, 6, scales=scales))))
    selector = fit_selector(model, rows[:40])
    chosen = ["same" in selector(Prompt(prompt, ids_of(model, prompt), ("same",))) for prompt, _ in rows[40:]]
    assert sum(choice == (place % 2 == 0) for place, choice in enumerate(chosen)) >= 13, chosen

    selector.save(tmp_path / "gate.safetensors")
    again = read_selector(str(tmp_path / "gate.safetensors"), model)
    assert isinstance(again, LearnedSelector)
    ids = ids_of(model, TEXTS[0])
    assert again.probabilities(ids) == pytest.approx(selector.probabilities(ids))
    with pytest.raises(CheckpointError, match="was made for same, window, reader"):
        LearnedSelector.load(tmp_path / "gate.safetensors", compose(zoo, "other"))
    (tmp_path / "gate.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="is no selector"):
        LearnedSelector.load(tmp_path / "gate.safetensors", model)


def test_states_are_read_without_the_blocks_above(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    ids = ids_of(model, TEXTS[1])
    with torch.no_grad():
        states = model.anchor.model(torch.tensor([ids]), output_hidden_states=[2]).hidden_states[2]
    torch.testing.assert_close(mean_state(model, ids, layer=1), states[0].mean(dim=0))
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
