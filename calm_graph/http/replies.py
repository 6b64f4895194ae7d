"""From a call's outputs to its HTTP response, whole or in pieces: what both kinds of completions share."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import CompletionUsage
from starlette.requests import Request
from starlette.responses import Response

from calm_graph.generate.requests import GenerationRequest, TokenLogprob, TokenOutput
from calm_graph.generate.sampling import Sampling
from calm_graph.http.answers import Answers
from calm_graph.http.client import ServedModel
from calm_graph.http.disconnect import unless_gone
from calm_graph.http.protocol import GenerationFields
from calm_graph.http.record import RequestRecord, record_of
from calm_graph.http.service import Service
from calm_graph.http.sse import EventStream

SKIPPED_HEADER = "x-calm-skipped-augmenters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A completion that is being made.

    Args:
        id: Of the response.
        created: Unix time, in seconds.
        model: Answers.
        requests: One a prompt.
        contributions: Whether those of the augmenters are asked for.
    """

    id: str
    created: int
    model: ServedModel
    requests: tuple[GenerationRequest, ...]
    contributions: bool

    @property
    def num_choices(self) -> int:
        """Of each prompt."""
        return self.requests[0].num_choices

    def index(self, request: int, choice: int) -> int:
        """Return the number of a choice among those of all prompts."""
        return request * self.num_choices + choice


def make_call(
    body: GenerationFields,
    model: ServedModel,
    prompts: Sequence[tuple[Sequence[int], str | None]],
    samplings: Sequence[Sampling],
    *,
    prefix: str,
) -> Call:
    """Return the call that a body asks for.

    Args:
        body: Checked.
        model: Answers.
        prompts: Token ids, and the text that augmenters read.
        samplings: One a prompt.
        prefix: Of the response's id.
    """
    id = f"{prefix}-{uuid.uuid4().hex}"
    requests = tuple(
        GenerationRequest(
            id=f"{id}-{index}",
            composition=model.name,
            prompt_ids=tuple(ids),
            prompt_text=text,
            sampling=sampling,
            num_choices=body.n,
            scales=dict(body.augmenters),
            contributions=body.calm.contributions,
        )
        for index, ((ids, text), sampling) in enumerate(zip(prompts, samplings, strict=True))
    )
    return Call(id=id, created=int(time.time()), model=model, requests=requests, contributions=body.calm.contributions)


def begin(service: Service, call: Call, request: Request, *, stream: bool) -> Answers:
    """Ask the engine.

    Args:
        service: Answers.
        call: What is asked.
        request: Its record learns of it.
        stream: Whether the answer goes out piece by piece.

    Returns:
        The outputs to come.
    """
    record = record_of(request)
    record.model = call.model.name
    record.stream = stream
    record.num_prompt_tokens = sum(len(each.prompt_ids) for each in call.requests)
    if service.settings.log_prompts:
        decode = service.client.tokenizer.decode
        record.prompts = [each.prompt_text or decode(list(each.prompt_ids)) for each in call.requests]
    return Answers(service, call.requests, record)


async def reply(
    request: Request,
    answers: Answers,
    *,
    stream: bool,
    pieces: Callable[[], AsyncGenerator[str, None]],
    whole: Callable[[], Coroutine[Any, Any, str]],
) -> Response:
    """Return the response, once it is clear that it is no error.

    Args:
        request: Whose client is watched.
        answers: The outputs to come; closed in the end.
        stream: Whether `pieces` are sent, or the `whole`.
        pieces: JSON texts, made of the outputs.
        whole: One JSON text, made of all of them.
    """
    started = False
    try:
        await unless_gone(request.receive, answers.peek())
        if stream:
            started = True
            response: Response = EventStream(pieces(), close=answers.aclose, record=record_of(request))
        else:
            response = Response(await unless_gone(request.receive, whole()), media_type="application/json")
        if answers.skipped:  # of a stream, those of the first prompt that is answered
            response.headers[SKIPPED_HEADER] = ", ".join(sorted(answers.skipped))
        return response
    finally:
        if not started:
            await answers.aclose()


def usage(record: RequestRecord) -> CompletionUsage:
    """Return the numbers of tokens, so far."""
    prompt, new = record.num_prompt_tokens, record.num_new_tokens
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


@dataclass(slots=True, kw_only=True)
class Gathered:
    """One answer as its tokens come.

    Args:
        texts: Final text, token by token.
        logprobs: Of each token, if asked for.
        contributions: Of each token, if asked for.
        finish_reason: Why it ended.
        stop_reason: The stop text or token that ended it.
        skipped: Augmenters that it is made without.
    """

    texts: list[str] = field(default_factory=list)
    logprobs: list[Sequence[TokenLogprob]] = field(default_factory=list)
    contributions: list[Mapping[str, float]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    skipped: Sequence[str] = ()

    def add(self, output: TokenOutput) -> None:
        """Take the next token."""
        if output.token_id is not None or output.text:
            self.texts.append(output.text)
            self.contributions.append(dict(output.contributions or {}))
        if output.logprobs:
            self.logprobs.append(output.logprobs)
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason
        self.skipped = output.skipped_augmenters

    def extras(self, call: Call) -> dict[str, Any]:
        """Return the fields of a whole choice that OpenAI does not have."""
        extras: dict[str, Any] = {} if self.stop_reason is None else {"stop_reason": self.stop_reason}
        if call.contributions:
            extras["calm"] = {"contributions": self.contributions, "tokens": self.texts}
        if self.skipped:
            extras.setdefault("calm", {})["skipped_augmenters"] = list(self.skipped)
        return extras


def piece_extras(call: Call, output: TokenOutput) -> dict[str, Any]:
    """Return the fields of a streamed choice that OpenAI does not have."""
    extras: dict[str, Any] = {} if output.stop_reason is None else {"stop_reason": output.stop_reason}
    if call.contributions and (output.token_id is not None or output.text):
        extras["calm"] = {"contributions": [dict(output.contributions or {})]}
    if output.skipped_augmenters:
        extras.setdefault("calm", {})["skipped_augmenters"] = list(output.skipped_augmenters)
    return extras


def says_nothing(call: Call, output: TokenOutput) -> bool:
    """Whether no piece need be sent: part of a character, or text that may become a stop text."""
    told = output.text or output.logprobs or output.finish_reason or call.contributions
    return not told
