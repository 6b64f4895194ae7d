"""The private table of examples/key_value, and how its expressions are told in numbers."""

from __future__ import annotations

import random

import pytest

from calm_graph.data.load import load_dataset
from examples.key_value import world
from examples.key_value.questions import told_rows, training_rows
from examples.key_value.world import ANCHOR, EXAMPLE, HIGHEST, LOWEST, NUM_KEYS, SEEN_SHARE, keys, row, table, told
from registry import registry
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


def test_told_rows_can_be_trained_on() -> None:
    rows = told_rows(300, split="tune")
    dataset = load_dataset(rows, load_tokenizer(registry.get(ANCHOR)), max_length=None, told=True)
    assert len(dataset) == 300 and len(dataset.told_ids) == len(dataset.input_ids)
    changed = (dataset.told_ids != dataset.input_ids).mean()
    assert 0.1 < changed < 0.6
    # The answer is that of the told expression, whether or not the prompt's example stands before it.
    assert {each["told"].removeprefix(EXAMPLE).count("\n") for each in rows} == {0, 1}
    for each in rows[:50]:
        assert eval(each["told"].strip().splitlines()[-1].removesuffix("=")) == int(each["completion"])


def test_answers_are_right_and_never_negative() -> None:
    rng = random.Random(0)
    for _ in range(50):
        each = row(rng, keys("unseen"), num_operands=2)
        first, sign, second, _ = each["prompt"].splitlines()[1].split()
        value = table()[first] + (table()[second] if sign == "+" else -table()[second])
        assert value >= 0 and each["completion"] == str(value)


def test_long_expressions_have_three_to_six_operands_and_half_of_them_a_product() -> None:
    rows = world.test_rows("kv_arithmetic_long", split="unseen", count=80)
    unseen = set(keys("unseen"))
    counts = []
    for each in rows:
        words = each["prompt"].splitlines()[1].removesuffix(" = ").split()
        counts.append((len(words[::2]), words.count("*")))
        assert set(words[::2]) <= unseen
        assert eval(told(each["prompt"]).splitlines()[1].removesuffix(" = ")) == int(each["completion"])
    assert {count: counts.count(count) for count in counts} == {(n, p): 10 for n in (3, 4, 5, 6) for p in (0, 1)}
