"""How sure a measured value is: rows are drawn again, with replacement, and the metric computed of each draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Value = Callable[[Floats], Floats]

NUM_DRAWS = 2_000
_DRAWS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where 95% (by default) of the draws lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What one system has more than another, on the same rows.

    Args:
        value: The difference.
        low: Lower end of its interval.
        high: Upper end.
        probability: Two-sided, of a difference as far from 0 if there were none (percentile bootstrap).
    """

    value: float
    low: float
    high: float
    probability: float


def draws(sums: Floats, value: Value, *, seed: int = 0, num_draws: int = NUM_DRAWS) -> Floats:
    """Compute a metric of many draws of the rows.

    The same seed and number of rows draw the same rows, so that draws of two systems are paired.

    Args:
        sums: float [N, S], of each row.
        value: Sums -> the metric.
        seed: Of the draws.
        num_draws: How many.

    Returns:
        float [num_draws].
    """
    return np.concatenate([value(counts @ sums) for counts in _counts(len(sums), seed, num_draws)])


def interval(found: float, drawn: Floats, *, level: float = 0.95) -> Interval:
    """Return the percentile interval.

    Args:
        found: The metric of all rows.
        drawn: Of the draws.
        level: Share of them inside.

    Returns:
        The interval.
    """
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(found, float(low), float(high))


def difference(
    found: float, against: float, drawn: Floats, drawn_against: Floats, *, level: float = 0.95
) -> Difference:
    """Compare two systems by paired draws.

    Args:
        found: The metric of the one.
        against: Of the other.
        drawn: Of draws of the one.
        drawn_against: Of the same draws of the other.
        level: Share inside the interval.

    Returns:
        The first less the second.
    """
    apart = drawn - drawn_against
    low, high = np.quantile(apart, [(1 - level) / 2, (1 + level) / 2])
    # The one draw that was really made counts as well, so that the probability is never 0.
    below, above = (apart <= 0).sum() + 1, (apart >= 0).sum() + 1
    probability = min(1.0, 2 * float(min(below, above)) / (len(apart) + 1))
    return Difference(found - against, float(low), float(high), probability)


def _counts(num_rows: int, seed: int, num_draws: int) -> Iterator[Floats]:
    """Yield float [draws, N]: how often each row is in each draw."""
    random = np.random.default_rng(seed)
    shares = np.full(num_rows, 1 / num_rows)
    for first in range(0, num_draws, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, num_draws - first)
        yield random.multinomial(num_rows, shares, size=count).astype(np.float64)
