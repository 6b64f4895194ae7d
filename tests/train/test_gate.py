"""A gate is learned from what augmenters are worth, and chooses for rows as it would for requests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from calm_graph.data.load import load_dataset
from calm_graph.errors import InputError
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.generate.selector import Prompt
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import prompt_ids
from calm_graph.train.chosen import chosen_scales
from calm_graph.train.gate import fit_selector
from examples.arithmetic import data as arithmetic
from examples.arithmetic.demo import SHIPPED
from tests.model.cases import compose
from tests.model.conftest import zoo as model_zoo
from tests.model.pico import Zoo

zoo = model_zoo


@pytest.fixture(scope="module")
def demo() -> ComposedModel:
    model: ComposedModel = ComposedModel.from_pretrained(SHIPPED, dtype=torch.float32)
    return model


def sums(kind: arithmetic.Task, first: int, last: int) -> list[dict[str, Any]]:
    rows = arithmetic.test_rows(kind, ["garden"], split="unseen", count=last)[first:]
    return [{"prompt": row.prompt, "completion": row.completion} for row in rows]


def test_a_gate_learns_whom_a_prompt_needs(demo: ComposedModel) -> None:
    fitted = fit_selector(demo, data=sums("key_value", 0, 30), keep=sums("numeric", 0, 30))
    decided = fitted.decided["demo-prices-garden"]
    assert decided.num_rows == 12 and decided.right >= 11
    assert 0 < decided.needed < 12 and 0 < decided.chosen < 12
    kinds: dict[arithmetic.Task, bool] = {"key_value": True, "numeric": False}
    for kind, is_needed in kinds.items():
        chosen = []
        for row in sums(kind, 30, 50):
            prompt = Prompt(row["prompt"], tuple(prompt_ids(demo.tokenizer, row["prompt"])), ("demo-prices-garden",))
            chosen.append(bool(fitted.selector(prompt)))
        assert chosen.count(is_needed) >= 19, (kind, chosen)


def test_a_text_without_a_prompt_is_a_row_too(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    needing = [{"prompt": "so", "completion": completion} for completion in (" it is", " the end", " 14")]
    fitted = fit_selector(model, data=needing, keep=[{"text": "a text without a prompt"}] * 3, min_gain=-100.0)
    assert fitted.selector.probabilities(prompt_ids(model.tokenizer, "so"))["same"] > 0.5
    assert fitted.selector.probabilities([model.tokenizer.bos_token_id])["same"] < 0.5


def test_each_row_of_a_batch_has_its_own_augmenters(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    seen: list[Prompt] = []

    def choose(prompt: Prompt) -> list[str]:
        seen.append(prompt)
        return ["window"] if "fox" in prompt.text else ["same", "reader"]

    data: list[dict[str, Any]] = [
        {"prompt": "The quick brown fox", "completion": " jumps"},
        {"text": "so it is"},
        {"prompt": "price of apples", "completion": " is 3 and more"},
    ]
    batch = load_dataset(data, model.tokenizer, max_length=None).batch([0, 1, 2])
    found = {name: scales.tolist() for name, scales in chosen_scales(choose, model, batch).items()}
    assert found == {"same": [0.0, 0.5, 0.5], "window": [1.0, 0.0, 0.0], "reader": [0.0, 1.0, 1.0]}
    assert [list(prompt.ids) for prompt in seen] == [
        prompt_ids(model.tokenizer, "The quick brown fox"),
        [model.tokenizer.bos_token_id],
        prompt_ids(model.tokenizer, "price of apples"),
    ]

    with pytest.raises(InputError, match=r"selector: chose \['sane'\], but it may choose among same, window, reader"):
        chosen_scales(lambda prompt: ["sane"], model, batch)


CHOSEN = ["price of apples is 3", "The quick brown fox", "", "so"]
AFTER = [" 14", " jumps", "Hello", " The end"]


def only_apples(prompt: Prompt) -> list[str]:
    return list(prompt.augmenters) if "apples" in prompt.text else []


def test_a_chosen_composition_scores_and_answers_as_one_with_those_on(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    chosen = EngineSystem(model, name="composed_selected", selector=f"{__name__}:only_apples", batch_size=4)
    found = chosen.score(CHOSEN, AFTER, done=lambda _: None)
    on = EngineSystem(model, batch_size=1).score(CHOSEN, AFTER, done=lambda _: None)
    off = EngineSystem.anchor(model, batch_size=1).score(CHOSEN, AFTER, done=lambda _: None)
    assert found == pytest.approx([on[0], *off[1:]], rel=1e-5)
    assert abs(on[1] - off[1]) > 1e-3
    assert chosen.identity != EngineSystem(model).identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 99}, "layer: got 99, but the anchor has 0.."),
        ({"threshold": 1.0}, "threshold: got 1.0, but a probability"),
        ({"data": []}, "no rows"),
    ],
)
def test_one_clear_error(zoo: Zoo, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_selector(compose(zoo, "mixed"), **{"data": [{"prompt": "a", "completion": "b"}], **options})
