"""/v1/completions: one or several prompts, as texts or token ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from openai.types import Completion, CompletionChoice

from calm_graph.generate.requests import GenerationRequest, PromptOutput
from calm_graph.http.answers import Answers
from calm_graph.http.logprobs import Logged, completion_logprobs
from calm_graph.http.objects import to_json, unchecked
from calm_graph.http.protocol import CompletionBody
from calm_graph.http.replies import (
    Call,
    Gathered,
    begin,
    make_call,
    piece_extras,
    reply,
    says_nothing,
    usage,
)
from calm_graph.http.service import Lengths, Service, asked_model, check_choices, check_token_ids
from calm_graph.http.tokenise import refuse_far_too_long, text_ids

DEFAULT_MAX_TOKENS = 16


def completion_routes(service: Service) -> APIRouter:
    """Return the route of completions."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion)
    async def create_completion(body: CompletionBody, request: Request) -> Response:
        """Continue prompts."""
        call = await prepare(service, body)
        answers = begin(service, call, request, stream=body.stream)
        tokenizer = service.client.tokenizer
        return await reply(
            request,
            answers,
            stream=body.stream,
            pieces=lambda: _pieces(call, body, answers, tokenizer),
            whole=lambda: _whole(call, body, answers, tokenizer),
        )

    return router


async def prepare(service: Service, body: CompletionBody) -> Call:
    """Return what a body asks of the engine.

    Args:
        service: Has the models and the limits.
        body: Of the request.

    Returns:
        The call.

    Raises:
        ApiError: There is no such model, a value is not allowed, or a prompt is empty or too long.
    """
    model = asked_model(service, body)
    tokenizer = service.client.tokenizer
    given: list[Any]
    if isinstance(body.prompt, str) or isinstance(body.prompt[0], int):
        given = [body.prompt]
    else:
        given = list(body.prompt)
    check_choices(service.settings, len(given) * body.n, param="n" if len(given) == 1 else "prompt")
    lengths = Lengths(param="prompt", asked=body.max_tokens, least=body.min_tokens, default=DEFAULT_MAX_TOKENS)
    prompts: list[tuple[list[int], str | None]] = []
    samplings = []
    for prompt in given:
        if isinstance(prompt, str):
            refuse_far_too_long(tokenizer, len(prompt), context_length=model.context_length, param="prompt")
            ids, text = await text_ids(tokenizer, prompt, special_tokens=body.add_special_tokens), prompt
        else:
            check_token_ids(tokenizer, {"prompt": prompt})
            ids, text = prompt, None
        prompts.append((ids, text))
        samplings.append(
            body.sampling(
                max_new_tokens=lengths.most(service.settings, model, len(ids)),
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs if body.echo else None,
            )
        )
    return make_call(body, model, prompts, samplings, prefix="cmpl")


def _completion(call: Call, choices: list[CompletionChoice], **further: Any) -> str:
    fields: dict[str, Any] = {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.model.name,
        "choices": choices,
        **further,
    }
    return to_json(unchecked(Completion, **fields))


def _choice(index: int, text: str, **further: Any) -> CompletionChoice:
    return unchecked(CompletionChoice, **{"index": index, "text": text, "logprobs": None, **further})


def _prompt_text(request: GenerationRequest, tokenizer: Any) -> str:
    if request.prompt_text is not None:
        return request.prompt_text
    return str(tokenizer.decode(list(request.prompt_ids)))


def _prompt_logged(request: GenerationRequest, output: PromptOutput, tokenizer: Any) -> list[Logged]:
    """Return the prompt's tokens with their log-probabilities; the first has none, only its text."""
    pairs = zip(request.prompt_ids, output.logprobs, strict=True)
    return [(entries[0].text if entries else str(tokenizer.decode([id])), entries) for id, entries in pairs]


async def _whole(call: Call, body: CompletionBody, answers: Answers, tokenizer: Any) -> str:
    """Return the response as one JSON text."""
    gathered = [Gathered() for _ in range(len(call.requests) * call.num_choices)]
    prompts: dict[int, list[Logged]] = {}
    async for number, output in answers:
        if isinstance(output, PromptOutput):
            prompts[number] = _prompt_logged(call.requests[number], output, tokenizer)
        else:
            gathered[call.index(number, output.choice)].add(output)
    choices = []
    for index, answer in enumerate(gathered):
        number = index // call.num_choices
        text = "".join(answer.texts)
        if body.echo:
            text = _prompt_text(call.requests[number], tokenizer) + text
        further: dict[str, Any] = {"finish_reason": answer.finish_reason, **answer.extras(call)}
        if body.logprobs is not None:
            tokens = prompts.get(number, []) + [(entries[0].text, entries) for entries in answer.logprobs]
            further["logprobs"] = completion_logprobs(tokens, offset=0)[0]
        choices.append(_choice(index, text, **further))
    return _completion(call, choices, usage=usage(answers.record))


async def _pieces(call: Call, body: CompletionBody, answers: Answers, tokenizer: Any) -> AsyncGenerator[str, None]:
    """Yield the response as JSON texts, one a token."""
    last: dict[str, Any] = {"usage": None} if body.include_usage else {}
    offsets = [0] * (len(call.requests) * call.num_choices)
    silent = set(range(len(offsets))) if body.echo else set()  # those whose prompt is still to be echoed

    def echo(number: int, logged: list[Logged] | None) -> list[str]:
        pieces = []
        for index in range(call.index(number, 0), call.index(number + 1, 0)):
            if index in silent:
                silent.discard(index)
                further: dict[str, Any] = {"finish_reason": None}
                if logged is not None:
                    further["logprobs"], offsets[index] = completion_logprobs(logged, offset=0)
                text = _prompt_text(call.requests[number], tokenizer)
                pieces.append(_completion(call, [_choice(index, text, **further)], **last))
        return pieces

    async for number, output in answers:
        if isinstance(output, PromptOutput):
            for piece in echo(number, _prompt_logged(call.requests[number], output, tokenizer)):
                yield piece
            continue
        for piece in echo(number, None):
            yield piece
        if says_nothing(call, output):
            continue
        index = call.index(number, output.choice)
        further: dict[str, Any] = {"finish_reason": output.finish_reason, **piece_extras(call, output)}
        if output.logprobs:
            tokens = [(output.logprobs[0].text, output.logprobs)]
            further["logprobs"], offsets[index] = completion_logprobs(tokens, offset=offsets[index])
        yield _completion(call, [_choice(index, output.text, **further)], **last)
    if body.include_usage:
        yield _completion(call, [], usage=usage(answers.record))
