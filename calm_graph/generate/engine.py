"""Continuous batching: requests join and leave between steps, and each is answered as if it were alone.

An engine is driven by one thread, which calls `step` while there is work. It knows neither HTTP nor Ray.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import torch

from calm_graph.errors import CalmGraphError, InputError, OverloadedError, ServingError
from calm_graph.generate.batch import Anchor, Batch, Group
from calm_graph.generate.prefill import Prefill
from calm_graph.generate.prefixes import Prefixes
from calm_graph.generate.requests import (
    FinishReason,
    GenerationRequest,
    Output,
    PromptOutput,
    TokenLogprob,
    TokenOutput,
)
from calm_graph.generate.sampler import Draw, choice_seed, draw
from calm_graph.generate.selector import Prompt, Selector
from calm_graph.generate.statistics import EngineStatistics
from calm_graph.generate.text import AnswerText
from calm_graph.model.composed import ComposedModel
from calm_graph.model.inputs import check_ids
from calm_graph.model.timing import RunTimes, measured_runs
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.plan.estimate import estimate
from calm_graph.plan.parts import Plan

_log = logging.getLogger(__name__)

_MEASURE_EVERY = 32
"""Steps between measurements of what augmenters write, for the statistics."""

_REST_S = 0.005
"""Time between looks for what a service has sent, where there is nothing else to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine may use.

    Args:
        max_running: Answers made at the same time.
        max_waiting: Requests that may wait for room; more are refused.
        max_cache_tokens: Tokens of the anchor kept in all, padding included: the rows times the longest of them.
        prefill_tokens: Prompt tokens read between two steps of the answers under way.
        max_prefills: Prompts being read at the same time, so that a short one need not wait until a long one is read.
        prefix_tokens: Tokens of prompts kept for later requests that begin alike; 0 keeps none.
    """

    max_running: int = 16
    max_waiting: int = 128
    max_cache_tokens: int = 65_536
    prefill_tokens: int = 256
    max_prefills: int = 4
    prefix_tokens: int = 8_192


@dataclass(slots=True)
class Answer:
    """One answer under way.

    Attributes:
        request: What was asked.
        choice: Which of its answers.
        seed: Of its draws.
        text: What becomes of its tokens.
        ids: Its tokens.
        limit: The most tokens it may have.
        end_ids: Tokens that end it.
        skipped: Augmenters that are left out of it, because their service does not answer.
    """

    request: GenerationRequest
    choice: int
    seed: int
    text: AnswerText
    ids: list[int]
    limit: int
    end_ids: frozenset[int]
    skipped: tuple[str, ...] = ()

    def draw(self) -> Draw:
        """What decides its next token."""
        sampling = self.request.sampling
        too_short = len(self.ids) < sampling.min_new_tokens
        return Draw(
            sampling=sampling,
            seed=self.seed,
            prompt_ids=self.request.prompt_ids,
            ids=self.ids,
            end_ids=self.end_ids if too_short else frozenset(),
        )

    def take(self, id: int, logprobs: tuple[TokenLogprob, ...], shares: Mapping[str, float] | None) -> TokenOutput:
        """Add a token and say what came of it."""
        self.ids.append(id)
        sampling = self.request.sampling
        finish: FinishReason | None = None
        reason: str | int | None = None
        if id in self.end_ids:
            finish, text = "stop", self.text.end()
            if id in sampling.stop_token_ids:
                reason = id
                text += self.text.push(id, may_stop=False).text if sampling.include_stop else ""
        else:
            piece = self.text.push(id, may_stop=len(self.ids) >= sampling.min_new_tokens)
            text = piece.text
            if piece.stop is not None:
                finish, reason = "stop", piece.stop
            elif len(self.ids) >= self.limit:
                finish, text = "length", text + self.text.end()
        return TokenOutput(
            choice=self.choice,
            token_id=id,
            text=text,
            logprobs=logprobs,
            contributions=shares,
            finish_reason=finish,
            stop_reason=reason,
            skipped_augmenters=self.skipped,
        )

    def end(self, text: str) -> TokenOutput:
        """End it without another token, as if its limit were reached."""
        return TokenOutput(
            choice=self.choice, token_id=None, text=text, finish_reason="length", skipped_augmenters=self.skipped
        )


@dataclass(slots=True)
class _Reading:
    """A request whose prompt is being read."""

    request: GenerationRequest
    answers: list[Answer]
    prefill: Prefill
    width: int
    prompt_logprobs: list[tuple[TokenLogprob, ...] | None] = field(default_factory=list)


Result = tuple[str, Output | Exception]
"""A request's id, and an output of it or the reason why it ends."""


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
        self._selectors = dict(selectors or {})
        self.settings = settings or EngineSettings()
        first = next(iter(self.models.values()))
        for name, model in self.models.items():
            if model.plan.anchor.card != first.plan.anchor.card:
                raise InputError(
                    f"models[{name!r}]: its anchor is {model.plan.anchor.name!r}, but an engine has one for all, here "
                    f"{first.plan.anchor.name!r}; serve it by an engine of its own"
                )
        self.anchor_name = first.plan.anchor.name
        self.tokenizer = first.tokenizer
        self.context_length = first.plan.anchor.card.context_length or 2**31
        self._anchor = Anchor(first.anchor)
        self._vocab_size: int = first.config.get_text_config(decoder=True).vocab_size
        self._end_ids = _end_ids(first)
        self._bytes = TokenBytes(first.tokenizer)
        self._waiting: deque[GenerationRequest] = deque()
        self._reading: list[_Reading] = []
        self._answers: list[Answer] = []
        self._batch = Batch(self._anchor)
        self._prefixes = Prefixes(self.settings.prefix_tokens)
        self._prompt_flops = {name: _prompt_flops(model.plan) for name, model in self.models.items()}
        self._times = RunTimes()
        self._statistics = EngineStatistics(cache_limit=self.settings.max_cache_tokens)

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
        self._check(request)
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
        for reading in self._reading:
            if reading.request.id == request_id:
                reading.prefill.drop()
        self._reading = [reading for reading in self._reading if reading.request.id != request_id]
        self._keep([answer.request.id != request_id for answer in self._answers])
        num_left = len(self._answers) + len(self._reading) + len(self._waiting)
        self._count_finished("cancelled", num_before - num_left)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Read a piece of what was asked, add a token to every answer under way, and say what came of it."""
        began = time.perf_counter()
        results: list[Result] = []
        with measured_runs(self._times):
            self._admit(results)
            num_read = self._read(results)
            if self._answers:
                self._decode(results)
            elif num_read == 0 and not results:
                self._rest()
                return results
        self._statistics.num_steps += 1
        self._statistics.step_s += time.perf_counter() - began
        return results

    def _rest(self) -> None:
        """Wait a moment for the services that were asked, instead of going in circles."""
        groups = [reading.prefill.group for reading in self._reading]
        asked = [pending.states for group in groups if group is not None for pending in group.request.pending.values()]
        if asked:
            wait(asked, timeout=_REST_S, return_when=FIRST_COMPLETED)

    def fail(self, error: Exception) -> list[Result]:
        """Give up everything under way; the engine is as new afterwards."""
        ids = dict.fromkeys([request.id for request in self._waiting])
        ids |= dict.fromkeys([reading.request.id for reading in self._reading])
        ids |= dict.fromkeys([answer.request.id for answer in self._answers])
        self._waiting.clear()
        for reading in self._reading:
            reading.prefill.drop()
        self._reading.clear()
        self._answers.clear()
        self._batch = Batch(self._anchor)
        return [(id, error) for id in ids]

    def statistics(self) -> EngineStatistics:
        """What it counts, as of now."""
        statistics = self._statistics
        statistics.num_running = len(self._answers) + sum(len(reading.answers) for reading in self._reading)
        statistics.num_waiting = len(self._waiting)
        statistics.cache_tokens = self._num_cached()
        statistics.augmenter_s = dict(self._times.seconds)
        statistics.augmenter_tokens = dict(self._times.num_tokens)
        return replace(statistics)

    def _check(self, request: GenerationRequest) -> None:
        known = [*self.models, self.anchor_name]
        if request.composition not in known:
            nearest = get_close_matches(request.composition, known, n=2) or known
            raise InputError(f"composition: got {request.composition!r}, but there is {', '.join(nearest)}")
        if not request.prompt_ids:
            raise InputError("prompt: got no token; give at least one")
        ids = torch.tensor([[*request.prompt_ids, *request.resume_ids]])
        check_ids(ids, self._vocab_size)
        room = self.context_length - len(request.prompt_ids)
        if room < min(1, request.sampling.max_new_tokens):
            raise InputError(
                f"prompt: got {len(request.prompt_ids)} tokens, but the anchor's context is {self.context_length}; "
                "shorten it"
            )
        if not 1 <= request.num_choices <= self.settings.max_running:
            raise InputError(f"num_choices: got {request.num_choices}, allowed are 1..{self.settings.max_running}")
        if request.resume_ids and request.num_choices > 1:
            raise InputError("resume_ids: they belong to one answer, so num_choices must be 1")
        if bad := [id for id in request.sampling.logit_bias if not 0 <= id < self._vocab_size]:
            raise InputError(f"logit_bias: got token {bad[0]}, but the vocabulary has ids 0..{self._vocab_size - 1}")
        if self._width(request) * request.num_choices > self.settings.max_cache_tokens:
            raise InputError(
                f"prompt: {self._width(request)} tokens with the answer, {request.num_choices} times, are more than "
                f"the {self.settings.max_cache_tokens} that are kept in all; ask for fewer tokens or choices"
            )
        self._scales(request)

    def _scales(self, request: GenerationRequest) -> dict[str, float]:
        """The factor of each augmenter; none for the anchor alone."""
        if request.composition not in self.models:
            if request.scales:
                raise InputError(f"augmenters: got {sorted(request.scales)}, but the anchor alone has none")
            return {}
        plan = self.models[request.composition].plan
        scales = {edge.source: edge.scale for edge in plan.edges}
        for name, scale in request.scales.items():
            if name not in scales:
                raise InputError(f"augmenters: got {name!r}, but the composition has {', '.join(sorted(scales))}")
            if not -1e4 <= scale <= 1e4:
                raise InputError(f"augmenters[{name!r}]: got {scale}, but a factor of -10000..10000 is allowed")
            scales[name] = float(scale)
        return scales

    def _chosen(self, request: GenerationRequest) -> dict[str, float]:
        """The factors with those that are not worth running at 0."""
        scales = self._scales(request)
        selector = self._selectors.get(request.composition)
        open_names = tuple(name for name, scale in scales.items() if scale != 0 and name not in request.scales)
        if selector is None or not open_names:
            return scales
        text = request.prompt_text
        if text is None:
            text = b"".join(self._bytes.text(request.prompt_ids)).decode(errors="replace")
        wanted = set(selector(Prompt(text=text, ids=request.prompt_ids, augmenters=open_names)))
        if unknown := wanted.difference(open_names):
            raise InputError(f"selector: chose {sorted(unknown)}, but it may choose among {', '.join(open_names)}")
        return {name: 0.0 if name in open_names and name not in wanted else scale for name, scale in scales.items()}

    def _width(self, request: GenerationRequest) -> int:
        """Tokens of each of its rows at the end."""
        return min(self.context_length, len(request.prompt_ids) + request.sampling.max_new_tokens)

    def _num_cached(self) -> int:
        reading = sum(reading.width * len(reading.answers) for reading in self._reading)
        return len(self._answers) * self._batch.width + reading

    def _has_room(self, request: GenerationRequest) -> bool:
        # Those that wait for a service take no time, and must not hold up the others.
        num_prefills = sum(not reading.prefill.is_waiting for reading in self._reading)
        return num_prefills < self.settings.max_prefills and self._num_fitting([request]) == 1

    def _num_without_room(self) -> int:
        """Requests that wait for others to end; those that came with them between two steps wait for a step only."""
        return len(self._waiting) - self._num_fitting(self._waiting)

    def _num_fitting(self, requests: Iterable[GenerationRequest]) -> int:
        """How many of these, from the first on, there is room for beside all that is under way."""
        # By what all of them may come to: a request that was let in is never sent away again.
        num_rows = len(self._answers) + sum(len(reading.answers) for reading in self._reading)
        widths = [self._width(answer.request) for answer in self._answers]
        width = max([*widths, *(reading.width for reading in self._reading)], default=0)
        count = 0
        for request in requests:
            num_rows, width = num_rows + request.num_choices, max(width, self._width(request))
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
                self._reading.append(self._begin(request))
            except Exception as error:
                results.append((request.id, _told(error)))

    def _begin(self, request: GenerationRequest) -> _Reading:
        ids = (*request.prompt_ids, *request.resume_ids)
        wants_all = request.sampling.prompt_logprobs is not None
        group = self._group(request)
        prefill = Prefill(self._anchor, ids, group, wants_all=wants_all)
        if not wants_all:
            self._statistics.num_reused_tokens += self._prefixes.restore(prefill, request)
        prefill.start()
        self._count_prompt(request, group)
        return _Reading(request, self._new_answers(request), prefill, self._width(request))

    def _group(self, request: GenerationRequest) -> Group | None:
        """The request's augmenters, with its prompt; None if none that reaches the anchor is on."""
        scales = self._chosen(request)
        if not scales:
            return None
        model = self.models[request.composition]
        graph = model.graph
        if not graph.is_needed(scales):
            return None
        tokens = model.anchor_tokens(torch.tensor([request.prompt_ids], device=self._anchor.device), None)
        new = graph.new_request(keeps=True)
        with graph.scaled(scales):
            graph.begin(
                new,
                tokens,
                prompt_lengths=torch.tensor([len(request.prompt_ids)]),
                prompt_texts=None if request.prompt_text is None else [request.prompt_text],
                inputs={},
            )
        return Group(graph, new, [scales])

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
                limit=self._width(request) - len(request.prompt_ids),
                end_ids=end_ids,
            )
            for choice in range(request.num_choices)
        ]
        for id in request.resume_ids:
            answers[0].take(id, (), None)
        return answers

    def _read(self, results: list[Result]) -> int:
        """Spend the budget: half of it on the request that came first, the rest on the shortest, so that neither waits.

        As few and as long pieces as that allows, because a short piece takes longer for each of its tokens. Tells how
        many tokens were read.
        """
        budget = self.settings.prefill_tokens
        if self._reading:
            first = self._reading[0]
            budget -= self._read_until(first, budget - budget // 2, results)
            for reading in sorted(self._reading, key=lambda reading: reading.prefill.num_left):
                budget -= self._read_until(reading, budget, results)
        return self.settings.prefill_tokens - budget

    def _read_until(self, reading: _Reading, budget: int, results: list[Result]) -> int:
        """Read at most so many tokens of one prompt; tells how many it were."""
        num_read = 0
        try:
            while num_read < budget and not reading.prefill.is_done:
                num_piece = self._read_piece(reading, budget - num_read)
                if num_piece == 0:
                    break
                num_read += num_piece
        except Exception as error:
            reading.prefill.drop()
            self._reading.remove(reading)
            results.append((reading.request.id, _told(error)))
            return num_read
        if reading.prefill.is_done:
            self._reading.remove(reading)
            results += self._start(reading)
        return num_read

    def _read_piece(self, reading: _Reading, num_tokens: int) -> int:
        prefill = reading.prefill
        first = prefill.num_read
        num_read = prefill.advance(num_tokens, measure=reading.request.contributions)
        if prefill.wants_all and prefill.num_read > first:
            self._note_prompt(reading, first)
        return num_read

    def _note_prompt(self, reading: _Reading, first: int) -> None:
        prefill, count = reading.prefill, reading.request.sampling.prompt_logprobs
        assert prefill.logits_TV is not None and count is not None
        if first == 0:
            reading.prompt_logprobs.append(None)
        ids = reading.request.prompt_ids[first + 1 : prefill.num_read + 1]
        reading.prompt_logprobs += self._logprobs(prefill.logits_TV[: len(ids)], ids, count)

    def _start(self, reading: _Reading) -> Iterator[Result]:
        """Draw the first token of each answer; those that go on join the batch."""
        request, prefill = reading.request, reading.prefill
        if not prefill.wants_all:
            self._prefixes.store(prefill, request)
        if prefill.wants_all:
            logprobs = tuple(reading.prompt_logprobs)
            yield request.id, PromptOutput(logprobs=logprobs, skipped_augmenters=prefill.skipped)
        assert prefill.logits_TV is not None
        going = reading.answers
        for answer in going:
            answer.skipped = prefill.skipped
        for name in prefill.skipped:
            self._statistics.num_unavailable[name] = self._statistics.num_unavailable.get(name, 0) + 1
        if request.sampling.max_new_tokens == 0:
            for answer in going:
                yield request.id, answer.end("")
            self._count_finished("length", len(going))
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
        self._count_new(shares)
        outputs = self._take(self._answers, logits_BV, shares)
        results += [(answer.request.id, output) for answer, output in zip(self._answers, outputs, strict=True)]
        self._keep([output.finish_reason is None for output in outputs])

    def _end_full(self, has_room: Sequence[bool], results: list[Result]) -> None:
        """End the answers whose augmenters have no room for more text, as if their own limit were reached."""
        for answer, fits in zip(self._answers, has_room, strict=True):
            if not fits:
                results.append((answer.request.id, answer.end(answer.text.end())))
                self._count_finished("length", 1)
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
            logprobs = () if count is None else self._logprobs(logits_BV[row : row + 1], [id], count)[0]
            asked = answer.request.contributions
            output = answer.take(id, logprobs, shares[row] if asked else None)
            outputs.append(output)
            self._statistics.num_new_tokens += 1
            if output.finish_reason is not None:
                self._count_finished(output.finish_reason, 1)
        return outputs

    def _logprobs(self, logits_TV: torch.Tensor, ids: Sequence[int], count: int) -> list[tuple[TokenLogprob, ...]]:
        """For each position the token itself and then the likeliest ones."""
        logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
        top = logprobs_TV.topk(count, dim=-1) if count else None
        found = []
        for row, id in enumerate(ids):
            pairs = [(id, float(logprobs_TV[row, id]))]
            if top is not None:
                pairs += zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            found.append(
                tuple(TokenLogprob(token_id=each, text=self._token_text(each), logprob=value) for each, value in pairs)
            )
        return found

    def _token_text(self, id: int) -> str:
        text = self._bytes([id])[0].decode(errors="replace")
        return text or str(self.tokenizer.convert_ids_to_tokens(id) or "")

    def _count_prompt(self, request: GenerationRequest, group: Group | None) -> None:
        self._statistics.num_prompt_tokens += len(request.prompt_ids)
        if request.composition in self.models:
            on = {} if group is None else group.scales[0]
            skipped, saved = self._statistics.skipped_tokens, self._statistics.saved_flops
            for name, flops in self._prompt_flops[request.composition].items():
                if not on.get(name):
                    skipped[name] = skipped.get(name, 0) + len(request.prompt_ids)
                    saved[name] = saved.get(name, 0.0) + flops * len(request.prompt_ids)

    def _count_new(self, shares: Sequence[Mapping[str, float]]) -> None:
        found: dict[str, list[float]] = {}
        for row in shares:
            for name, share in row.items():
                found.setdefault(name, []).append(share)
        self._statistics.contribution |= {name: sum(values) / len(values) for name, values in found.items()}

    def _count_finished(self, reason: str, count: int) -> None:
        finished = self._statistics.num_finished
        if count:
            finished[reason] = finished.get(reason, 0) + count


def _told(error: Exception) -> Exception:
    """What the one who asked is told of an error that ends this request alone."""
    if isinstance(error, CalmGraphError):
        return error
    _log.error("a request could not be read", exc_info=error)
    return ServingError(f"the request could not be read: {type(error).__name__}: {error}")


def _end_ids(model: ComposedModel) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    return frozenset([found]) if isinstance(found, int) else frozenset(found or ())


def _prompt_flops(plan: Plan) -> dict[str, int]:
    """Augmenter -> operations for each token of a prompt, with those of its attachments."""
    cost = estimate(plan)
    flops = {run.name: cost.runs[run.name].flops_per_prompt_token for run in plan.runs if not run.is_anchor}
    for (source, _), edge in cost.edges.items():
        flops[source] += edge.flops_per_prompt_token
    return flops
