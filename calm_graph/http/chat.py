"""/v1/chat/completions: messages, written as the anchor's chat template writes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs

from calm_graph.generate.requests import PromptOutput
from calm_graph.http.answers import Answers
from calm_graph.http.logprobs import chat_logprob
from calm_graph.http.objects import to_json, unchecked
from calm_graph.http.protocol import ChatBody
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
from calm_graph.http.service import Lengths, Service, asked_model, check_choices
from calm_graph.http.tokenise import chat_ids, refuse_far_too_long


def chat_routes(service: Service) -> APIRouter:
    """Return the route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def create_chat_completion(body: ChatBody, request: Request) -> Response:
        """Answer messages."""
        call = await prepare(service, body)
        answers = begin(service, call, request, stream=body.stream)
        return await reply(
            request,
            answers,
            stream=body.stream,
            pieces=lambda: _pieces(call, body, answers),
            whole=lambda: _whole(call, body, answers),
        )

    return router


async def prepare(service: Service, body: ChatBody) -> Call:
    """Return what a body asks of the engine.

    Args:
        service: Has the models and the limits.
        body: Of the request.

    Returns:
        The call.

    Raises:
        ApiError: There is no such model, a value is not allowed, or the messages are empty or too long.
    """
    model = asked_model(service, body)
    check_choices(service.settings, body.n, param="n")
    tokenizer = service.client.tokenizer
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    lengths = Lengths(param="messages", asked=asked, least=body.min_tokens, default=None)
    num_characters = sum(len(message.content) for message in body.messages)
    refuse_far_too_long(tokenizer, num_characters, context_length=model.context_length, param="messages")
    ids, text = await chat_ids(tokenizer, body)
    length = lengths.most(service.settings, model, len(ids))
    sampling = body.sampling(max_new_tokens=length, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    return make_call(body, model, [(ids, text)], [sampling], prefix="chatcmpl")


async def _whole(call: Call, body: ChatBody, answers: Answers) -> str:
    """Return the response as one JSON text."""
    gathered = [Gathered() for _ in range(call.num_choices)]
    async for _, output in answers:
        if not isinstance(output, PromptOutput):
            gathered[output.choice].add(output)
    choices = []
    for index, answer in enumerate(gathered):
        content = [chat_logprob(entries) for entries in answer.logprobs]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.texts), "refusal": None}
        fields: dict[str, Any] = {
            "index": index,
            "message": unchecked(ChatCompletionMessage, **message),
            "logprobs": unchecked(ChoiceLogprobs, content=content, refusal=None) if body.logprobs else None,
            "finish_reason": answer.finish_reason,
            **answer.extras(call),
        }
        choices.append(unchecked(Choice, **fields))
    fields = {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model.name,
        "choices": choices,
        "usage": usage(answers.record),
    }
    return to_json(unchecked(ChatCompletion, **fields))


def _chunk(call: Call, choices: list[ChunkChoice], **further: Any) -> str:
    fields: dict[str, Any] = {
        "id": call.id,
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": call.model.name,
        "choices": choices,
        **further,
    }
    return to_json(unchecked(ChatCompletionChunk, **fields))


def _choice(index: int, delta: dict[str, Any], **further: Any) -> ChunkChoice:
    fields = {"index": index, "delta": unchecked(ChoiceDelta, **delta), "logprobs": None, **further}
    return unchecked(ChunkChoice, **fields)


async def _pieces(call: Call, body: ChatBody, answers: Answers) -> AsyncGenerator[str, None]:
    """Yield the response as JSON texts: the roles, then one a token."""
    last: dict[str, Any] = {"usage": None} if body.include_usage else {}
    for index in range(call.num_choices):
        delta = {"role": "assistant", "content": ""}
        yield _chunk(call, [_choice(index, delta, finish_reason=None)], **last)
    async for _, output in answers:
        if isinstance(output, PromptOutput) or says_nothing(call, output):
            continue
        further: dict[str, Any] = {"finish_reason": output.finish_reason, **piece_extras(call, output)}
        if output.logprobs:
            further["logprobs"] = unchecked(ChunkLogprobs, content=[chat_logprob(output.logprobs)], refusal=None)
        delta = {"content": output.text} if output.text or output.finish_reason is None else {}
        yield _chunk(call, [_choice(output.choice, delta, **further)], **last)
    if body.include_usage:
        yield _chunk(call, [], usage=usage(answers.record))
