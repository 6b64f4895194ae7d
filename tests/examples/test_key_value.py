"""The private table of examples/key_value, and how its expressions are told in numbers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from examples.key_value.composition import composition
from examples.key_value.make_augmenter import config, save
from examples.key_value.questions import training_rows
from examples.key_value.train import difference, told
from examples.key_value.world import ANCHOR, HIGHEST, LOWEST, NUM_KEYS, SEEN_SHARE, keys, row, table
from registry import Registry, registry
from registry.weights import load_tokenizer

pytestmark = pytest.mark.realmodels


def test_no_key_is_in_two_splits_and_training_has_every_value() -> None:
    seen, unseen, tune, dev = (set(keys(split)) for split in ("seen", "unseen", "tune", "dev"))
    assert len(table()) == NUM_KEYS and len(seen) == SEEN_SHARE * NUM_KEYS
    assert not seen & unseen and seen | unseen == set(table())
    assert not tune & dev and tune | dev == seen
    assert {table()[key] for key in tune} == set(range(LOWEST, HIGHEST + 1))
    assert keys("seen", seed=1) != keys("seen")


def test_an_expression_told_in_numbers_has_a_token_for_each_of_its_tokens() -> None:
    tokenizer = load_tokenizer(registry.get(ANCHOR))
    for each in training_rows(200, split="tune"):
        spelled, numbers = (tokenizer(text).input_ids for text in (each["prompt"], told(each["prompt"])))
        assert len(spelled) == len(numbers)
        expression = told(each["prompt"]).splitlines()[1].removesuffix(" = ")
        assert eval(expression) == int(each["completion"])  # two numbers and a sign


def test_answers_are_right_and_never_negative() -> None:
    rng = random.Random(0)
    for _ in range(50):
        each = row(rng, keys("unseen"), num_operands=2)
        first, sign, second, _ = each["prompt"].splitlines()[1].split()
        value = table()[first] + (table()[second] if sign == "+" else -table()[second])
        assert value >= 0 and each["completion"] == str(value)


def test_states_differ_by_nothing_where_no_key_is_and_the_first_token_counts(tmp_path: Path) -> None:
    model = fresh(tmp_path)
    told_already = ["12 + 35 = 47\n12 + 7 = ", "\n3 - 2 = "]
    assert difference(model, told_already).item() == 0
    names = keys("tune")
    unknown = difference(model, [f"\n{names[0]} + 7 = "])
    assert unknown.item() > 0
    unknown.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    with torch.no_grad():  # now something is written everywhere, the first token included
        for name, parameter in model.named_parameters():
            if name.endswith("output.weight") and parameter.requires_grad:
                parameter.normal_(std=0.1)
        alone = difference(model, ["1"])
    assert alone.item() > 0.01


def fresh(folder: Path) -> ComposedModel:
    """The composition with a private model that knows nothing."""
    tokenizer = load_tokenizer(registry.get(ANCHOR))
    save(Qwen2ForCausalLM(config(len(tokenizer))), tokenizer, folder)
    own = Registry(registry)
    own.add_folder(folder, replace=True)
    return build_model(composition, registry=own, dtype=torch.float32)
