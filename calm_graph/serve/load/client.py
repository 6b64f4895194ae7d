"""A client of an OpenAI-compatible server: what it has, and one request, streamed and timed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx2 as httpx

from calm_graph.errors import InputError, ServingError
from calm_graph.serve.load.parts import DEFAULT_CONTEXT, Load, Reply, Target

_PATIENCE_S = 600.0

Ask = Callable[[Load, str], Awaitable[Reply]]


async def find_target(url: str, *, model: str | None, api_key: str | None, chat: bool) -> Target:
    """Ask a server what it has.

    Args:
        url: With or without /v1.
        model: One of its models; None is the first.
        api_key: Sent as a bearer token.
        chat: Whether chat completions are to be asked for.

    Returns:
        The target.

    Raises:
        InputError: The URL is none, or the server has no such model.
        ServingError: It is not reached, refuses the key, or is no such server.
    """
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise InputError(f"url: got {url!r}, but http://HOST:PORT is needed")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with httpx.AsyncClient(timeout=10.0, headers=headers) as client:
            response = await client.get(f"{base}/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ServingError(f"{base}: no server answers there: {str(error) or type(error).__name__}") from None
    if response.status_code in (401, 403):
        given = "refuses the API key" if api_key else "wants an API key; give one"
        raise ServingError(f"{base}: the server {given} ({response.status_code})")
    try:
        models = {str(each["id"]): each for each in response.raise_for_status().json()["data"]}
        first = next(iter(models))
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError, StopIteration):
        message = f"{base}/v1/models: got status {response.status_code}, but a list of models is needed"
        raise ServingError(f"{message}; is it an OpenAI-compatible server?") from None
    if model is not None and model not in models:
        raise InputError(f"model: got {model!r}, but {base} has {', '.join(map(repr, models))}")
    name = model or first
    context_length = models[name].get("max_model_len")
    return Target(
        url=f"{base}/v1",
        model=name,
        context_length=context_length if isinstance(context_length, int) else DEFAULT_CONTEXT,
        api_key=api_key,
        chat=chat,
    )


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Ask]:
    """Open connections to a server for as long as the `async with`.

    Args:
        target: The server.

    Yields:
        What asks it once and takes the stream's times: from a load, which has the length of the answer, and a prompt
        to what became of it, errors too.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    # A pool that waits for a free connection would hide from the server what it is to be tested with.
    # Idle connections are dropped before servers do (uvicorn: after 5 s), or a request meets one that is being closed.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024, keepalive_expiry=2.0)
    async with httpx.AsyncClient(timeout=_PATIENCE_S, limits=limits, headers=headers, trust_env=False) as client:
        yield partial(_ask, client, target)


async def _ask(client: httpx.AsyncClient, target: Target, load: Load, prompt: str) -> Reply:
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if load.min_tokens:  # vLLM's field too; ignore_eos would be answered with end tokens, which have no text to time
        body["min_tokens"] = load.min_tokens
    body |= {"messages": [{"role": "user", "content": prompt}]} if target.chat else {"prompt": prompt}
    path = "chat/completions" if target.chat else "completions"
    reply = Reply()
    start_s = time.perf_counter()
    try:
        async with client.stream("POST", f"{target.url}/{path}", json=body) as response:
            reply.status = response.status_code
            if response.status_code != 200:
                _note_refusal(reply, response, await response.aread())
            else:
                await _listen(response, reply, start_s, chat=target.chat)
    except httpx.HTTPError as error:
        reply.error = type(error).__name__
    reply.seconds = time.perf_counter() - start_s
    return reply


async def _listen(response: httpx.Response, reply: Reply, start_s: float, *, chat: bool) -> None:
    """Read a stream to its end."""
    last_s: float | None = None
    num_pieces, is_ended = 0, False
    async with aclosing(_events(response)) as events:
        async for now_s, data in events:
            if data == b"[DONE]":
                is_ended = True
                continue
            event = json.loads(data)
            if "error" in event:
                reply.error = str((event["error"] or {}).get("code") or "error")
                continue
            if event.get("usage"):
                reply.num_tokens = int(event["usage"]["completion_tokens"])
            for choice in event["choices"]:
                text = (choice["delta"].get("content") if chat else choice["text"]) or ""
                if not text:
                    continue
                num_pieces += 1
                reply.text += text
                if last_s is None:
                    reply.first_token_s = now_s - start_s
                else:
                    reply.gaps_s.append(now_s - last_s)
                last_s = now_s
    reply.num_tokens = reply.num_tokens or num_pieces
    if reply.error is None and not is_ended:
        reply.error = "broken_stream"


async def _events(response: httpx.Response) -> AsyncGenerator[tuple[float, bytes]]:
    """Yield what events carry, with the time they came."""
    rest = b""
    async for piece in response.aiter_raw():
        now_s = time.perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield now_s, line[5:].strip()


def _note_refusal(reply: Reply, response: httpx.Response, body: bytes) -> None:
    reply.error = f"http_{response.status_code}"
    with suppress(ValueError, KeyError, TypeError):
        reply.error = str(json.loads(body)["error"]["code"] or reply.error)
    with suppress(ValueError):
        reply.retry_after_s = float(response.headers.get("retry-after", ""))
