"""Put a load on a server: so many requests together, or so many a second."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator

from calm_graph.interrupts import StopRequest
from calm_graph.serve.load.client import connect
from calm_graph.serve.load.parts import Load, LoadResult, Reply, Target

_POLL_S = 0.1
_SHORTEST, _LONGEST = 16, 1024  # characters of a prompt
_TEXT = (
    "the price of apples and pears in winter is more than what a small shop near the river asked for last year "
    "because trains were late, seven boxes broke and nobody counted them; add 12 to 30, then tell why"
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

    async with connect(target) as ask:

        async def send() -> None:
            reply = await ask(load, next(prompts))
            replies.append(reply)
            on_reply(reply)

        start_s = time.perf_counter()
        working = asyncio.create_task(_closed(load, send) if load.rate is None else _open(load, send))
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


_Send = Callable[[], Coroutine[None, None, None]]


async def _closed(load: Load, send: _Send) -> None:
    """Keep so many requests under way."""
    assert load.concurrency is not None
    left = math.inf if load.num_requests is None else load.num_requests
    end_s = math.inf if load.duration_s is None else time.perf_counter() + load.duration_s

    async def go_on() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < end_s:
            left -= 1
            await send()

    async with asyncio.TaskGroup() as group:
        for _ in range(load.concurrency):
            group.create_task(go_on())


async def _open(load: Load, send: _Send) -> None:
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
            group.create_task(send())
            count += 1


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
