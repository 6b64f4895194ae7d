"""Load for an OpenAI-compatible server: requests, so many together or so many a second, streamed and timed."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from calm_graph.errors import InputError, ServingError
from calm_graph.interrupts import StopRequest

DEFAULT_CONTEXT = 2048
_PATIENCE_S = 600.0
_POLL_S = 0.1
_SHORTEST, _LONGEST = 16, 1024  # characters of a prompt
_TEXT = (
    "the price of apples and pears in winter is more than what a small shop near the river asked for last year "
    "because trains were late, seven boxes broke and nobody counted them; add 12 to 30, then tell why"
)


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


def ragged_prompts(seed: int, *, longest: int = _LONGEST) -> Iterator[str]:
    """Yield prompts without end, no two alike, from a few words to a page: as many short ones as long ones.

    Args:
        seed: The same one makes the same prompts.
        longest: Characters of the longest.
    """
    draws, words = random.Random(seed), _TEXT.split()
    longest = max(1, min(longest, _LONGEST))
    shortest = min(_SHORTEST, longest)
    while True:
        length = round(shortest * (longest / shortest) ** draws.random())
        text = ""
        while len(text) < length:
            text += f"{draws.choice(words)} "
        yield text[:length].strip() or "a"


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


async def run_load(
    target: Target,
    load: Load,
    prompts: Iterator[str],
    *,
    on_reply: Callable[[Reply], None] = lambda _: None,
    stop: StopRequest | None = None,
) -> LoadResult:
    """Put a load on a server.

    Args:
        target: The server.
        load: How much.
        prompts: One for each request.
        on_reply: Called when a request has ended.
        stop: When it is requested, what is under way is given up.

    Returns:
        What was measured, as far as it went.
    """
    stop = stop or StopRequest()
    replies: list[Reply] = []

    async def send(client: httpx.AsyncClient) -> None:
        reply = await ask(client, target, load, next(prompts))
        replies.append(reply)
        on_reply(reply)

    async with _client(target) as client:
        start_s = time.perf_counter()
        working = asyncio.create_task(_closed(client, load, send) if load.rate is None else _open(client, load, send))
        while not working.done() and not stop.requested:
            await asyncio.wait([working], timeout=_POLL_S)
        is_whole = working.done()
        seconds = time.perf_counter() - start_s
        working.cancel()
        (outcome,) = await asyncio.gather(working, return_exceptions=True)
        if is_whole and outcome is not None:
            raise outcome
        if is_whole and working.done():
            seconds = min(seconds, time.perf_counter() - start_s)
    return LoadResult(load=load, seconds=seconds, replies=replies, is_whole=is_whole)


async def ask(client: httpx.AsyncClient, target: Target, load: Load, prompt: str) -> Reply:
    """Ask once and take the stream's times.

    Args:
        client: With the key.
        target: The server.
        load: Has the length of the answer.
        prompt: A text.

    Returns:
        What became of it; errors are in it.
    """
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


Send = Callable[[httpx.AsyncClient], Any]


async def _closed(client: httpx.AsyncClient, load: Load, send: Send) -> None:
    """Keep so many requests under way."""
    assert load.concurrency is not None
    left = math.inf if load.num_requests is None else load.num_requests
    end_s = math.inf if load.duration_s is None else time.perf_counter() + load.duration_s

    async def go_on() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < end_s:
            left -= 1
            await send(client)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(go_on())


async def _open(client: httpx.AsyncClient, load: Load, send: Send) -> None:
    """Begin requests at random times, by the clock: a late one does not delay those after it."""
    assert load.rate is not None
    draws = random.Random(load.seed)
    start_s, at_s, count = time.perf_counter(), 0.0, 0
    async with asyncio.TaskGroup() as group:
        while load.num_requests is None or count < load.num_requests:
            at_s += draws.expovariate(load.rate)
            if load.duration_s is not None and at_s > load.duration_s:
                return
            await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
            group.create_task(send(client))
            count += 1


@asynccontextmanager
async def _client(target: Target) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    # A pool that waits for a free connection would hide from the server what it is to be tested with.
    # Idle connections are dropped before servers do (uvicorn: after 5 s), or a request meets one that is being closed.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1024, keepalive_expiry=2.0)
    async with httpx.AsyncClient(timeout=_PATIENCE_S, limits=limits, headers=headers, trust_env=False) as client:
        yield client
