"""Prompts that are being read: a budget of tokens between two tokens of the answers, shared out so that none waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field

from calm_graph.errors import CalmGraphError, ServingError
from calm_graph.generate.admission import Admission
from calm_graph.generate.answer import Answer
from calm_graph.generate.batch import Anchor
from calm_graph.generate.logprobs import Logprobs
from calm_graph.generate.prefill import Prefill
from calm_graph.generate.prefixes import Prefixes
from calm_graph.generate.requests import GenerationRequest, PromptOutput, Result, TokenLogprob
from calm_graph.generate.statistics import EngineStatistics

_log = logging.getLogger(__name__)

_REST_S = 0.005
"""Time between looks for what a service has sent, where there is nothing else to do."""


@dataclass(slots=True, eq=False)
class Reading:
    """A request whose prompt is being read.

    Args:
        request: What was asked.
        answers: What will go on from the prompt.
        prefill: How far it was read.
        width: Tokens of each of its rows at the end.
        prompt_logprobs: Of the prompt's own tokens so far, where they are asked for.
    """

    request: GenerationRequest
    answers: list[Answer]
    prefill: Prefill
    width: int
    prompt_logprobs: list[tuple[TokenLogprob, ...] | None] = field(default_factory=list)


class Readings:
    """All prompts that are being read, in the order in which they came.

    Args:
        anchor: What reads them.
        admission: Knows their augmenters and widths.
        prefixes: Prompts that were read before.
        logprobs: Names tokens and how likely they are.
        statistics: Where tokens are counted.
    """

    def __init__(
        self,
        *,
        anchor: Anchor,
        admission: Admission,
        prefixes: Prefixes,
        logprobs: Logprobs,
        statistics: EngineStatistics,
    ) -> None:
        self._anchor, self._admission, self._prefixes = anchor, admission, prefixes
        self._logprobs, self._statistics = logprobs, statistics
        self._all: list[Reading] = []

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Reading]:
        return iter(self._all)

    @property
    def num_at_work(self) -> int:
        """How many take time; those that wait for a service must not hold up the others."""
        return sum(not reading.prefill.is_waiting for reading in self._all)

    @property
    def num_rows(self) -> int:
        """Answers that will go on from them."""
        return sum(len(reading.answers) for reading in self._all)

    @property
    def num_cached(self) -> int:
        """Cached tokens that they may come to."""
        return sum(reading.width * len(reading.answers) for reading in self._all)

    def begin(self, request: GenerationRequest, answers: list[Answer]) -> Reading:
        """Take in a request.

        Args:
            request: Checked.
            answers: What will go on from its prompt.

        Raises:
            InputError: The prompt cannot be read, or the selector chose something else.
        """
        prefill = self._new_prefill(request, scores=request.sampling.prompt_logprobs is not None)
        reading = Reading(request, answers, prefill, self._admission.width(request))
        self._all.append(reading)
        return reading

    def drop(self, request_id: str | None = None) -> None:
        """Forget a request, or all of them."""
        dropped = [reading for reading in self._all if request_id in (None, reading.request.id)]
        for reading in dropped:
            reading.prefill.drop()
        self._all = [reading for reading in self._all if reading not in dropped]

    def read(self, budget: int, results: list[Result]) -> tuple[int, list[Reading]]:
        """Spend a budget: half of it on the request that came first, the rest on the shortest, so that neither waits.

        As few and as long pieces as that allows, because a short piece takes longer for each of its tokens.

        Args:
            budget: Tokens to read at most.
            results: Hears of prompts that were scored, and of those that cannot be read.

        Returns:
            How many tokens were read, and the requests whose prompts are read to their ends.
        """
        left = budget
        done: list[Reading] = []
        if self._all:
            left -= self._read_until(self._all[0], budget - budget // 2, results, done)
            for reading in sorted(self._all, key=lambda reading: reading.prefill.num_left):
                left -= self._read_until(reading, left, results, done)
        return budget - left, done

    def rest(self) -> None:
        """Wait a moment for the services that were asked, instead of going in circles."""
        groups = [reading.prefill.group for reading in self._all]
        asked = [pending.states for group in groups if group is not None for pending in group.request.pending.values()]
        if asked:
            wait(asked, timeout=_REST_S, return_when=FIRST_COMPLETED)

    def _new_prefill(self, request: GenerationRequest, *, scores: bool) -> Prefill:
        """Begin to read a prompt, either to tell how likely its own words are, or to answer it."""
        ids = (*request.prompt_ids, *request.resume_ids)
        # How likely a word is must not depend on those after it, which augmenters may show where a prompt is answered.
        group = self._admission.group(request, closes_prompt=scores)
        prefill = Prefill(self._anchor, ids, group, wants_all=scores)
        if not scores:
            self._statistics.num_reused_tokens += self._prefixes.restore(prefill, request)
        prefill.start()
        return prefill

    def _read_until(self, reading: Reading, budget: int, results: list[Result], done: list[Reading]) -> int:
        """Read at most so many tokens of one prompt; tells how many it were."""
        num_read = 0
        try:
            while num_read < budget and not reading.prefill.is_done:
                num_piece = self._read_piece(reading, budget - num_read)
                if num_piece == 0:
                    break
                num_read += num_piece
            if reading.prefill.is_done and reading.prefill.wants_all:
                scored = PromptOutput(
                    logprobs=tuple(reading.prompt_logprobs), skipped_augmenters=reading.prefill.skipped
                )
                results.append((reading.request.id, scored))
                if reading.request.sampling.max_new_tokens and self._admission.opens_prompt(reading.request):
                    reading.prefill = self._new_prefill(reading.request, scores=False)
        except Exception as error:
            reading.prefill.drop()
            self._all.remove(reading)
            results.append((reading.request.id, told(error)))
            return num_read
        if reading.prefill.is_done:
            self._all.remove(reading)
            if not reading.prefill.wants_all:
                self._prefixes.store(reading.prefill, reading.request)
            done.append(reading)
        return num_read

    def _read_piece(self, reading: Reading, num_tokens: int) -> int:
        prefill = reading.prefill
        first = prefill.num_read
        num_read = prefill.advance(num_tokens, measure=reading.request.contributions)
        if prefill.wants_all and prefill.num_read > first:
            self._note_prompt(reading, first)
        return num_read

    def _note_prompt(self, reading: Reading, first: int) -> None:
        prefill, count = reading.prefill, reading.request.sampling.prompt_logprobs
        assert prefill.logits_TV is not None and count is not None
        if first == 0:
            reading.prompt_logprobs.append(None)
        ids = reading.request.prompt_ids[first + 1 : prefill.num_read + 1]
        reading.prompt_logprobs += self._logprobs.of(prefill.logits_TV[: len(ids)], ids, count)


def told(error: Exception) -> Exception:
    """Return what the one who asked is told of an error that ends this request alone."""
    if isinstance(error, CalmGraphError):
        return error
    _log.error("a request could not be read", exc_info=error)
    return ServingError(f"the request could not be read: {type(error).__name__}: {error}")
