"""What load is put on whom, and what came of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from calm_graph.errors import InputError

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked.

    Args:
        url: Of the API, with its /v1.
        model: One of its models.
        context_length: Most tokens of a prompt and its answer.
        api_key: Sent as a bearer token, if given.
        chat: Whether chat completions are asked for, or completions.
    """

    url: str
    model: str
    context_length: int = DEFAULT_CONTEXT
    api_key: str | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is asked at a time: exactly one of `concurrency` and `rate` is given.

    Args:
        num_requests: In all; None goes on until `duration_s`.
        concurrency: So many requests are under way; each that ends is followed by another.
        rate: So many requests a second on average, at random times (Poisson), whatever becomes of those before.
        duration_s: No request begins after so many seconds; None has no such end.
        max_tokens: Of each answer.
        min_tokens: Of each answer; as many as `max_tokens` make answers of one length. 0 is not sent.
        seed: Of the times, and of prompts that are made up.
    """

    num_requests: int | None = None
    concurrency: int | None = None
    rate: float | None = None
    duration_s: float | None = None
    max_tokens: int = 64
    min_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no load.

        Raises:
            InputError: A number is out of range, or there is none of two of which one is needed.
        """
        positive = ("num_requests", "concurrency", "rate", "duration_s", "max_tokens")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: got {value}, but a number above 0 is needed")
        if (self.concurrency is None) == (self.rate is None):
            given = f"concurrency={self.concurrency} and rate={self.rate}"
            raise InputError(f"load: got {given}, but one of them is needed")
        if self.num_requests is None and self.duration_s is None:
            raise InputError("load: it would never end; give num_requests or duration_s")

    @property
    def name(self) -> str:
        """For people."""
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(slots=True, kw_only=True)
class Reply:
    """What became of one request; times in seconds.

    Args:
        status: Of HTTP; 0: there was none.
        error: Its code; None: all went well.
        first_token_s: From the request to the first token.
        gaps_s: From each token to the next one.
        num_tokens: Of the answer.
        seconds: From the request to its end.
        retry_after_s: When the server would have it try again.
        text: The answer.
    """

    status: int = 0
    error: str | None = None
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    retry_after_s: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load measured.

    Args:
        load: The load.
        seconds: From the first request to the end of the last.
        replies: One a request, in the order they ended.
        is_whole: Whether it ran to its end.
    """

    load: Load
    seconds: float
    replies: Sequence[Reply]
    is_whole: bool = True

    @property
    def answered(self) -> list[Reply]:
        """Those without an error."""
        return [reply for reply in self.replies if reply.error is None]

    @property
    def tokens_per_s(self) -> float:
        """Tokens of whole answers over the time."""
        return sum(reply.num_tokens for reply in self.answered) / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        """Whole answers over the time."""
        return len(self.answered) / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """How many there were of each code."""
        return dict(Counter(reply.error for reply in self.replies if reply.error is not None))

    def first_token_s(self, percent: float) -> float:
        """Return a percentile of the time to the first token; NaN of none."""
        return percentile([each.first_token_s for each in self.answered if each.first_token_s is not None], percent)

    def gap_s(self, percent: float) -> float:
        """Return a percentile of the time between two tokens; NaN of none."""
        return percentile([gap for each in self.answered for gap in each.gaps_s], percent)

    def record(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON; None where nothing was measured."""

        def figures(of: Callable[[float], float]) -> dict[str, float | None]:
            values = {f"p{percent}": of(percent) for percent in (50, 95, 99)}
            return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}

        return {
            "concurrency": self.load.concurrency,
            "rate": self.load.rate,
            "seconds": round(self.seconds, 3),
            "num_requests": len(self.replies),
            "num_answered": len(self.answered),
            "errors": self.errors,
            "requests_per_s": round(self.requests_per_s, 3),
            "output_tokens_per_s": round(self.tokens_per_s, 3),
            "first_token_s": figures(self.first_token_s),
            "inter_token_s": figures(self.gap_s),
            "is_whole": self.is_whole,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent are no larger than; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
