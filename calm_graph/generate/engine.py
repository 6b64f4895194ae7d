"""Continuous batching: requests join and leave between steps, and each is answered as if it were alone.

An engine is driven by one thread, which calls `step` while there is work. It knows neither HTTP nor Ray.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from calm_graph.errors import OverloadedError
from calm_graph.generate.admission import Admission
from calm_graph.generate.answer import Answer
from calm_graph.generate.batch import Anchor, Batch, Group
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.logprobs import Logprobs
from calm_graph.generate.prefixes import Prefixes
from calm_graph.generate.reading import Reading, Readings, told
from calm_graph.generate.requests import GenerationRequest, Result, TokenOutput
from calm_graph.generate.sampler import choice_seed, draw
from calm_graph.generate.selector import Selector
from calm_graph.generate.statistics import EngineStatistics
from calm_graph.generate.text import AnswerText
from calm_graph.model.composed import ComposedModel
from calm_graph.model.timing import RunTimes, measured_runs
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.plan.estimate import flops_per_prompt_token

_MEASURE_EVERY = 32
"""Steps between measurements of what augmenters write, for the statistics."""


class Engine:
    """Answers requests to compositions that share an anchor.

    Args:
        models: By the name that requests use. All read the first one's anchor.
        settings: What it may use.
        selectors: Name of a composition -> what chooses among its augmenters, where a request does not name them.

    Raises:
        InputError: Two models have different anchors.
    """

    def __init__(
        self,
        models: Mapping[str, ComposedModel],
        settings: EngineSettings | None = None,
        *,
        selectors: Mapping[str, Selector] | None = None,
    ) -> None:
        self.models = dict(models)
        self.settings = settings or EngineSettings()
        first = next(iter(self.models.values()))
        self.tokenizer = first.tokenizer
        self._bytes = TokenBytes(first.tokenizer)
        self._admission = Admission(
            self.models, settings=self.settings, selectors=dict(selectors or {}), table=self._bytes
        )
        self.anchor_name, self.context_length = self._admission.anchor_name, self._admission.context_length
        self._anchor = Anchor(first.anchor)
        self._end_ids = _end_ids(first)
        self._logprobs = Logprobs(self._bytes, first.tokenizer)
        self._waiting: deque[GenerationRequest] = deque()
        self._answers: list[Answer] = []
        self._batch = Batch(self._anchor)
        self._prefixes = Prefixes(self.settings.prefix_tokens)
        self._prompt_flops = {name: flops_per_prompt_token(model.plan) for name, model in self.models.items()}
        self._times = RunTimes()
        self._statistics = EngineStatistics(cache_limit=self.settings.max_cache_tokens)
        self._reading = Readings(
            anchor=self._anchor,
            admission=self._admission,
            prefixes=self._prefixes,
            logprobs=self._logprobs,
            statistics=self._statistics,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._reading or self._answers)

    def add(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InputError: It can never be answered.
            OverloadedError: Too many wait already.
        """
        self._admission.check(request)
        if (refusal := self.refusal()) is not None:
            raise refusal
        if request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        self._waiting.append(request)

    def refusal(self) -> OverloadedError | None:
        """What `add` would refuse any request with now."""
        most = self.settings.max_waiting
        if len(self._waiting) < most or self._num_without_room() < most:
            return None
        return OverloadedError(
            f"{len(self._waiting)} requests wait already, and no more may", retry_after_s=self._wait_s()
        )

    @torch.inference_mode()
    def cancel(self, request_id: str) -> None:
        """End a request at once, without another output; one that is not under way is not looked for."""
        num_before = len(self._answers) + len(self._reading) + len(self._waiting)
        self._waiting = deque(request for request in self._waiting if request.id != request_id)
        self._reading.drop(request_id)
        self._keep([answer.request.id != request_id for answer in self._answers])
        num_left = len(self._answers) + len(self._reading) + len(self._waiting)
        self._statistics.count_finished("cancelled", num_before - num_left)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Read a piece of what was asked, add a token to every answer under way, and say what came of it."""
        began = time.perf_counter()
        results: list[Result] = []
        with measured_runs(self._times):
            self._admit(results)
            num_read, done = self._reading.read(self.settings.prefill_tokens, results)
            for reading in done:
                results += self._start(reading)
            if self._answers:
                self._decode(results)
            elif num_read == 0 and not results:
                self._reading.rest()
                return results
        self._statistics.num_steps += 1
        self._statistics.step_s += time.perf_counter() - began
        return results

    def fail(self, error: Exception) -> list[Result]:
        """Give up everything under way; the engine is as new afterwards."""
        ids = dict.fromkeys([request.id for request in self._waiting])
        ids |= dict.fromkeys([reading.request.id for reading in self._reading])
        ids |= dict.fromkeys([answer.request.id for answer in self._answers])
        self._waiting.clear()
        self._reading.drop()
        self._answers.clear()
        self._batch = Batch(self._anchor)
        return [(id, error) for id in ids]

    def statistics(self) -> EngineStatistics:
        """What it counts, as of now."""
        statistics = self._statistics
        statistics.num_running = len(self._answers) + self._reading.num_rows
        statistics.num_waiting = len(self._waiting)
        statistics.cache_tokens = len(self._answers) * self._batch.width + self._reading.num_cached
        statistics.prefix_tokens = self._prefixes.num_tokens
        statistics.augmenter_s = dict(self._times.seconds)
        statistics.augmenter_tokens = dict(self._times.num_tokens)
        return replace(statistics)

    def _has_room(self, request: GenerationRequest) -> bool:
        return self._reading.num_at_work < self.settings.max_prefills and self._num_fitting([request]) == 1

    def _num_without_room(self) -> int:
        """Requests that wait for others to end; those that came with them between two steps wait for a step only."""
        return len(self._waiting) - self._num_fitting(self._waiting)

    def _num_fitting(self, requests: Iterable[GenerationRequest]) -> int:
        """How many of these, from the first on, there is room for beside all that is under way."""
        # By what all of them may come to: a request that was let in is never sent away again.
        num_rows = len(self._answers) + self._reading.num_rows
        widths = [self._admission.width(answer.request) for answer in self._answers]
        width = max([*widths, *(reading.width for reading in self._reading)], default=0)
        count = 0
        for request in requests:
            num_rows, width = num_rows + request.num_choices, max(width, self._admission.width(request))
            if num_rows > self.settings.max_running or num_rows * width > self.settings.max_cache_tokens:
                break
            count += 1
        return count

    def _wait_s(self) -> float:
        """How long one more request would wait: what waits, at the speed requests have ended so far."""
        done = sum(self._statistics.num_finished.values())
        per_request_s = self._statistics.step_s / done if done else 1.0
        return max(1.0, per_request_s * len(self._waiting))

    def _admit(self, results: list[Result]) -> None:
        while self._waiting and self._has_room(self._waiting[0]):
            request = self._waiting.popleft()
            try:
                reading = self._reading.begin(request, self._new_answers(request))
            except Exception as error:
                results.append((request.id, told(error)))
            else:
                self._count_prompt(request, reading.prefill.group)

    def _new_answers(self, request: GenerationRequest) -> list[Answer]:
        sampling = request.sampling
        assert sampling.seed is not None
        end_ids = sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._end_ids)
        answers = [
            Answer(
                request=request,
                choice=choice,
                seed=choice_seed(sampling.seed, choice),
                text=AnswerText(self._bytes, stop=sampling.stop, include_stop=sampling.include_stop),
                ids=[],
                limit=self._admission.width(request) - len(request.prompt_ids),
                end_ids=end_ids,
            )
            for choice in range(request.num_choices)
        ]
        for id in request.resume_ids:
            answers[0].take(id, (), None)
        return answers

    def _start(self, reading: Reading) -> Iterator[Result]:
        """Draw the first token of each answer; those that go on join the batch."""
        request, prefill = reading.request, reading.prefill
        assert prefill.logits_TV is not None
        going = reading.answers
        for answer in going:
            answer.skipped = prefill.skipped
        for name in prefill.skipped:
            self._statistics.num_unavailable[name] = self._statistics.num_unavailable.get(name, 0) + 1
        if request.sampling.max_new_tokens == 0:
            for answer in going:
                yield request.id, answer.end("")
            self._statistics.count_finished("length", len(going))
            return
        logits_BV = prefill.logits_TV[-1:].expand(len(going), -1)
        outputs = self._take(going, logits_BV, [prefill.contributions] * len(going))
        for output in outputs:
            yield request.id, output
        going = [answer for answer, output in zip(going, outputs, strict=True) if output.finish_reason is None]
        if not going:
            return
        if len(going) > 1:
            prefill.cache.select(torch.zeros(len(going), dtype=torch.int64))
            if prefill.group is not None:
                prefill.group.select([0] * len(going))
        self._batch.join(prefill.cache, [len(prefill.ids)] * len(going), prefill.group)
        self._answers += going

    def _decode(self, results: list[Result]) -> None:
        has_room = self._batch.has_room()
        if not all(has_room):
            self._end_full(has_room, results)
            if not self._answers:
                return
        asked = any(answer.request.contributions for answer in self._answers)
        measure = asked or self._statistics.num_steps % _MEASURE_EVERY == 0
        logits_BV, shares = self._batch.step([answer.ids[-1] for answer in self._answers], measure=measure)
        self._statistics.num_decoded_rows += len(self._answers)
        self._statistics.note_contributions(shares)
        outputs = self._take(self._answers, logits_BV, shares)
        results += [(answer.request.id, output) for answer, output in zip(self._answers, outputs, strict=True)]
        self._keep([output.finish_reason is None for output in outputs])

    def _end_full(self, has_room: Sequence[bool], results: list[Result]) -> None:
        """End the answers whose augmenters have no room for more text, as if their own limit were reached."""
        for answer, fits in zip(self._answers, has_room, strict=True):
            if not fits:
                results.append((answer.request.id, answer.end(answer.text.end())))
                self._statistics.count_finished("length", 1)
        self._keep(has_room)

    def _keep(self, keeps: Sequence[bool]) -> None:
        if all(keeps):
            return
        rows = [row for row, keep in enumerate(keeps) if keep]
        self._batch.keep(rows)
        self._answers = [self._answers[row] for row in rows]

    def _take(
        self, answers: Sequence[Answer], logits_BV: torch.Tensor, shares: Sequence[Mapping[str, float]]
    ) -> list[TokenOutput]:
        ids = draw(logits_BV, [answer.draw() for answer in answers])
        outputs = []
        for row, (answer, id) in enumerate(zip(answers, ids, strict=True)):
            count = answer.request.sampling.logprobs
            logprobs = () if count is None else self._logprobs.of(logits_BV[row : row + 1], [id], count)[0]
            asked = answer.request.contributions
            output = answer.take(id, logprobs, shares[row] if asked else None)
            outputs.append(output)
            self._statistics.num_new_tokens += 1
            if output.finish_reason is not None:
                self._statistics.count_finished(output.finish_reason, 1)
        return outputs

    def _count_prompt(self, request: GenerationRequest, group: Group | None) -> None:
        self._statistics.num_prompt_tokens += len(request.prompt_ids)
        on = {} if group is None else group.scales[0]
        costs = self._prompt_flops.get(request.composition, {})
        off = {name: flops for name, flops in costs.items() if not on.get(name)}
        self._statistics.count_skipped(off, num_tokens=len(request.prompt_ids))


def _end_ids(model: ComposedModel) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    return frozenset([found]) if isinstance(found, int) else frozenset(found or ())
