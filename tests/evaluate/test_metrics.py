"""Metrics give what sacrebleu and plain arithmetic give; intervals hold what they should."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import sacrebleu

from calm_graph.evaluate.measures.bootstrap import difference, draws, interval
from calm_graph.evaluate.measures.metrics import Outcome, metric, normalised

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "with", "Grüße", "ok?", "12", ",", ".", "house", "runs", "never"]


def sentences(count: int, *, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 14))) for _ in range(count)]


def outcomes(answers: list[str], references: list[str]) -> list[Outcome]:
    return [Outcome(reference=r, target=r, answers=[a]) for a, r in zip(answers, references, strict=True)]


def value(name: str, found: list[Outcome]) -> float:
    return float(metric(name).value(metric(name).sums(found).sum(axis=0)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [1, 3, 40])
def test_chrf_and_bleu_are_sacrebleus(seed: int, count: int) -> None:
    references = [text or "one" for text in sentences(count, seed=seed)]
    rng = random.Random(seed)
    answers = [
        r if rng.random() < 0.3 else a for a, r in zip(sentences(count, seed=seed + 100), references, strict=True)
    ]
    found = outcomes(answers, references)
    assert value("chrf", found) == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-9)
    expected = sacrebleu.corpus_bleu(answers, [references], force=True).score
    assert value("bleu", found) == pytest.approx(expected, abs=1e-9)


def test_empty_answers_are_worth_nothing() -> None:
    found = outcomes(["", ""], ["a cat sat", "on the mat with it"])
    assert value("chrf", found) == value("bleu", found) == 0


def test_bits_and_perplexity_count_bytes_and_words_of_the_reference() -> None:
    found = [
        Outcome(reference=" Grüße aus", target="", nats=8 * math.log(2)),
        Outcome(reference=" x", target="", nats=2 * math.log(2)),
    ]
    assert value("bits_per_byte", found) == pytest.approx(10 / (12 + 2))
    assert value("perplexity", found) == pytest.approx(2 ** (10 / 3))


@pytest.mark.parametrize(
    "kind, answer, expected",
    [
        ("text", "  The  Cat. ", "the cat"),
        ("packed", "1 2\n 3", "123"),
        ("number", "5 + 6 = 11. The answer is 1,234.50 dollars", "1234.5"),
        ("number", "#### -7", "-7"),
        ("number", "উত্তর হল ১৮।", "18"),
        ("number", "it is 100", "100"),
        ("number", "0.0", "0"),
        ("number", "no number", ""),
    ],
)
def test_what_of_an_answer_is_compared(kind: str, answer: str, expected: str) -> None:
    assert normalised(answer, kind) == expected


def test_pass_at_k_is_the_share_of_all_choices_of_k() -> None:
    passed = [True, False, False, True, False]
    for k in (1, 2, 3, 5):
        chosen = list(itertools.combinations(passed, k))
        expected = 100 * sum(any(each) for each in chosen) / len(chosen)
        found = [Outcome(reference="", target="", passed=passed)]
        assert value(f"pass@{k}", found) == pytest.approx(expected)
    with pytest.raises(ValueError, match="got metric 'pass@0', but there are chrf"):
        metric("pass@0")


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    accuracy = metric("accuracy")
    inside = 0
    for trial in range(120):
        sums = np.stack([rng.random(150) < 0.7, np.ones(150)], axis=1).astype(float)
        drawn = draws(sums, accuracy.value, seed=trial, num_draws=400)
        spread = interval(float(accuracy.value(sums.sum(axis=0))), drawn)
        inside += spread.low <= 70 <= spread.high
    assert 0.88 <= inside / 120 <= 0.99


def test_pairs_tell_apart_what_single_intervals_do_not() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(300)
    one, other = (np.stack([hard < share, np.ones(300)], axis=1).astype(float) for share in (0.55, 0.50))
    accuracy = metric("accuracy")
    drawn = [draws(sums, accuracy.value, seed=0) for sums in (one, other)]
    values = [float(accuracy.value(sums.sum(axis=0))) for sums in (one, other)]
    spreads = [interval(value, each) for value, each in zip(values, drawn, strict=True)]
    assert spreads[0].low < spreads[1].high
    found = difference(values[0], values[1], drawn[0], drawn[1])
    assert found.low > 0 and found.probability < 0.01
    same = difference(values[0], values[0], drawn[0], drawn[0])
    assert (same.value, same.low, same.high, same.probability) == (0, 0, 0, 1)
    assert (draws(one, accuracy.value, seed=0) == drawn[0]).all()
