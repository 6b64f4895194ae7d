"""What is measured: each metric keeps a few sums for each row, and makes its value from the sums of many."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calm_graph.errors import EvaluationError

Floats = NDArray[np.float64]
Needs = Literal["answers", "nats", "programs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one row.

    Args:
        reference: The right completion.
        target: What an answer is compared with.
        answers: The system's, if it was asked for any.
        nats: Negative log-likelihood of the reference, if it was scored.
        passed: Of each answer whether its program passed, if programs were run.
        answer_kind: What of an answer counts: `text`, `packed` or `number`.
    """

    reference: str
    target: str
    answers: Sequence[str] = ()
    nats: float = math.nan
    passed: Sequence[bool] = ()
    answer_kind: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number about many rows.

    Args:
        name: As in results.
        summary: What it is, in a sentence.
        needs: What must be known of each row.
        higher_is_better: Whether.
        sums: Outcomes of N rows -> float [N, S], what is summed over rows.
        value: Sums, float [..., S] -> the value, float [...]; corpus-level metrics are no means over rows.
        num_samples: Answers that it needs of each row.
        num_digits: After the point, that say something.
    """

    name: str
    summary: str
    needs: Needs
    higher_is_better: bool
    sums: Callable[[Sequence[Outcome]], Floats]
    value: Callable[[Floats], Floats]
    num_samples: int = 1
    num_digits: int = 1


def metric(name: str) -> Metric:
    """Return a metric.

    Args:
        name: One of `METRICS`, or `pass@k` with any k.

    Returns:
        The metric.

    Raises:
        ValueError: There is none of this name.
    """
    if name in METRICS:
        return METRICS[name]
    if found := re.fullmatch(r"pass@([1-9]\d*)", name):
        return _pass_at(int(found[1]))
    raise ValueError(f"got metric {name!r}, but there are {', '.join(METRICS)} and pass@k")


# --- likelihood -----------------------------------------------------------------------------------------------------


def _nats_and_bytes(outcomes: Sequence[Outcome]) -> Floats:
    return np.array([[outcome.nats, len(outcome.reference.encode())] for outcome in outcomes], dtype=np.float64)


def _bits_per_byte(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / math.log(2) / np.maximum(sums[..., 1], 1))


def _nats_and_words(outcomes: Sequence[Outcome]) -> Floats:
    return np.array([[outcome.nats, len(outcome.reference.split())] for outcome in outcomes], dtype=np.float64)


def _perplexity(sums: Floats) -> Floats:
    return np.asarray(np.exp(sums[..., 0] / np.maximum(sums[..., 1], 1)))


# --- answers --------------------------------------------------------------------------------------------------------


def normalised(answer: str, kind: str) -> str:
    """Return what of an answer is compared.

    Args:
        answer: As the system gave it.
        kind: `text`: without case, runs of white space and a full stop at the end; `packed`: without any white space;
            `number`: the last number, as plain digits.

    Returns:
        The text to compare; empty where there is no number.
    """
    if kind == "number":
        return _last_number(answer)
    text = unicodedata.normalize("NFKC", answer).strip()
    if kind == "packed":
        return "".join(text.split())
    return " ".join(text.casefold().split()).removesuffix(".")


# Digits of any script; groups of three behind commas count as one number.
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?")


def _last_number(text: str) -> str:
    found = _NUMBER.findall(text)
    if not found:
        return ""
    try:
        number = Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return ""
    # 18.0 and 18 are one number; `normalize` alone would write 1E+2 for 100.
    return format(number.normalize(), "f") if number else "0"


def _is_right(outcomes: Sequence[Outcome]) -> Floats:
    def right(outcome: Outcome) -> float:
        wanted = normalised(outcome.target, outcome.answer_kind)
        return float(normalised(outcome.answers[0], outcome.answer_kind) == wanted)

    return np.array([[right(outcome), 1.0] for outcome in outcomes])


def _percentage(sums: Floats) -> Floats:
    return np.asarray(100 * sums[..., 0] / np.maximum(sums[..., 1], 1))


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise EvaluationError("chrF and BLEU need sacrebleu: pip install 'calm-graph[evaluate]'") from error
    return sacrebleu


def _segments(scorer: Any, outcomes: Sequence[Outcome]) -> Floats:
    """Return sacrebleu's own statistics of each row."""
    answers = [outcome.answers[0].strip() for outcome in outcomes]
    references = [[outcome.target for outcome in outcomes]]
    return np.array(scorer._extract_corpus_statistics(answers, references), dtype=np.float64)


def _chrf_sums(outcomes: Sequence[Outcome]) -> Floats:
    return _segments(_sacrebleu().metrics.CHRF(), outcomes)


def _chrf(sums: Floats) -> Floats:
    """chrF2 of summed counts [hypothesis, reference, match] of six orders (sacrebleu's CHRF, for many sums at once)."""
    hypothesis, reference, match = (sums[..., first::3] for first in range(3))
    counted = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision = np.where(counted, match / np.maximum(hypothesis, 1), 0).sum(axis=-1) / orders
    recall = np.where(counted, match / np.maximum(reference, 1), 0).sum(axis=-1) / orders
    weighted = 4 * precision + recall
    return np.asarray(np.where(weighted > 0, 100 * 5 * precision * recall / np.where(weighted > 0, weighted, 1), 0.0))


def _bleu_sums(outcomes: Sequence[Outcome]) -> Floats:
    # `force`: sacrebleu warns of text that looks tokenised, which some of the data is.
    return _segments(_sacrebleu().metrics.BLEU(force=True), outcomes)


def _bleu(sums: Floats) -> Floats:
    """BLEU of summed [lengths, correct, total] of four orders (sacrebleu's, with its exponential smoothing)."""
    hypothesis, reference = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2:6], sums[..., 6:10]
    misses = np.cumsum(correct == 0, axis=-1)
    precision = np.where(correct > 0, correct, 2.0**-misses) / np.maximum(total, 1)
    penalty = np.where(
        hypothesis >= reference, 1.0, np.exp(np.minimum(0, 1 - reference / np.maximum(hypothesis, 1e-9)))
    )
    score = 100 * penalty * np.exp(np.log(precision).mean(axis=-1))
    # Orders that no answer is long enough for end the sum in sacrebleu: it gives 0.
    return np.asarray(np.where((correct > 0).any(axis=-1) & (total > 0).all(axis=-1), score, 0.0))


# --- programs -------------------------------------------------------------------------------------------------------


@cache
def _pass_at(k: int) -> Metric:
    def sums(outcomes: Sequence[Outcome]) -> Floats:
        return np.array([[_estimate(len(each.passed), sum(each.passed), k), 1.0] for each in outcomes])

    return Metric(
        name=f"pass@{k}",
        summary=f"share of programs of which one of {k} passes its tests, % (unbiased: Chen et al. 2021)",
        needs="programs",
        higher_is_better=True,
        sums=sums,
        value=_percentage,
        num_samples=k,
    )


def _estimate(num_samples: int, num_passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples hold one of the c that pass."""
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


METRICS: dict[str, Metric] = {
    found.name: found
    for found in (
        Metric(
            name="chrf",
            summary="chrF2 of sacrebleu over the whole test set, 0..100",
            needs="answers",
            higher_is_better=True,
            sums=_chrf_sums,
            value=_chrf,
        ),
        Metric(
            name="bleu",
            summary="BLEU of sacrebleu over the whole test set, 0..100",
            needs="answers",
            higher_is_better=True,
            sums=_bleu_sums,
            value=_bleu,
        ),
        Metric(
            name="accuracy",
            summary="share of answers that are right, %",
            needs="answers",
            higher_is_better=True,
            sums=_is_right,
            value=_percentage,
        ),
        _pass_at(1),
        Metric(
            name="bits_per_byte",
            summary="bits to predict the reference, per UTF-8 byte of it; no tokenizer changes it",
            needs="nats",
            higher_is_better=False,
            sums=_nats_and_bytes,
            value=_bits_per_byte,
            num_digits=3,
        ),
        Metric(
            name="perplexity",
            summary="of the reference, per word between white space; no tokenizer changes it",
            needs="nats",
            higher_is_better=False,
            sums=_nats_and_words,
            value=_perplexity,
            num_digits=2,
        ),
    )
}
"""Name -> metric."""
