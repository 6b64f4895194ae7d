"""10,000 random or hostile requests to a real server: no crash, no hang, no 5xx, and memory stays flat."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2 as httpx

from benchmarks import _hostile
from benchmarks._serving import DEMO, Server, load_average, serving
from benchmarks.bar import Bar

NUM_REQUESTS = 10_000
NUM_WARMUPS = 2_000
NUM_TOGETHER = 12
HANG_S = 60.0
BAR_GROWTH_MB = 16.0
NUM_FILLING = 512
NUM_FILLING_TOGETHER = 8
QUESTION = {"prompt": "12+7=", "temperature": 0, "max_tokens": 8}


@dataclass(slots=True)
class _Found:
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def measure() -> Bar:
    """Send them; the value is how many made the server fail, and none may.

    The bar also holds the growth of the server's memory from request 2,000 to the last to 16 MB, and wants that the
    server answers as before in the end, with nothing left under way. Before the first request the server's cache of
    prompts is filled: it grows up to the number of tokens that it is allowed, which is no leak.
    """
    with serving(DEMO, "--num-cpus", "1", "--max-running", "8") as server:
        before = _answer(server)
        print(f"{server.rss_mb():.0f} MB at the start", flush=True)
        num_kept = _fill_prefixes(server)
        print(f"{server.rss_mb():.0f} MB with {num_kept} tokens of prompts kept", flush=True)
        found = _Found()
        draws = random.Random(0)
        start_s, memory = time.monotonic(), []
        for first in range(0, NUM_REQUESTS, NUM_WARMUPS):
            requests = [_hostile.make(draws) for _ in range(NUM_WARMUPS)]
            asyncio.run(_send_all(server, requests, found))
            memory.append(server.rss_mb())
            print(
                f"{first + NUM_WARMUPS} requests, {time.monotonic() - start_s:.0f} s, {memory[-1]:.0f} MB; "
                f"{len(found.bad)} failures; {load_average()}",
                flush=True,
            )
        same = _answer(server) == before
        left = _left(server)
        errors = [line for line in server.log.read_text(errors="replace").splitlines() if "Traceback" in line]
    _show(found)
    growth_mb = memory[-1] - memory[0]
    print(
        f"memory grew by {growth_mb:.1f} MB (bar {BAR_GROWTH_MB:.0f}); answers as before: {same}; "
        f"left under way: {left}; tracebacks in the log: {len(errors)}"
    )
    holds = not found.bad and growth_mb <= BAR_GROWTH_MB and same and left == 0 and not errors
    return Bar(name="serve_fuzz", value=len(found.bad), bar=0, holds=holds, unit="failures")


async def _send_all(server: Server, requests: list[_hostile.Hostile], found: _Found) -> None:
    address = urlsplit(server.url)
    left = iter(requests)

    async def work() -> None:
        for request in left:
            status = -1
            try:
                async with asyncio.timeout(HANG_S):
                    status = await _hostile.send(address.hostname or "", address.port or 0, request)
            except (TimeoutError, OSError) as error:
                found.bad.append(f"{request.kind}: {error!r}: {request.data[:300]!r}")
            found.statuses[request.kind, status] += 1
            silent = status == 0 and not request.may_be_silent and request.leave_after is None
            if status >= 500 or silent:
                found.bad.append(f"{request.kind}: status {status}: {request.data[:600]!r}")

    await asyncio.gather(*(work() for _ in range(NUM_TOGETHER)))


def _fill_prefixes(server: Server) -> int:
    """Ask short prompts until the server keeps no more of them; returns how many tokens it keeps."""
    kept = -1
    with httpx.Client(timeout=HANG_S) as client:
        for first in range(0, 100_000, NUM_FILLING):
            now = _gauge(server, "calm_graph_prefix_tokens")
            if now <= kept:
                return now
            kept = now
            for number in range(first, first + NUM_FILLING, NUM_FILLING_TOGETHER):
                prompts = [f"{each}+{each}=" for each in range(number, number + NUM_FILLING_TOGETHER)]
                client.post(f"{server.url}/v1/completions", json={"prompt": prompts, "max_tokens": 1})
    raise RuntimeError("the cache of prompts grows without end")


def _gauge(server: Server, name: str) -> int:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(name))


def _answer(server: Server) -> object:
    return httpx.post(f"{server.url}/v1/completions", json=QUESTION, timeout=HANG_S).json()["choices"]


def _left(server: Server) -> int:
    """Answers under way, once those of clients that left have had time to end."""
    for _ in range(50):
        text = httpx.get(f"{server.url}/metrics").text
        running = [line for line in text.splitlines() if line.startswith("calm_graph_num_requests_")]
        count = sum(int(float(line.rsplit(" ", 1)[1])) for line in running)
        if not count:
            return 0
        time.sleep(0.1)
    return count


def _show(found: _Found) -> None:
    for kind in sorted({kind for kind, _ in found.statuses}):
        counts = sorted((status, count) for (each, status), count in found.statuses.items() if each == kind)
        print(f"{kind:<15} " + "  ".join(f"{status or 'none'}: {count}" for status, count in counts))
    for line in found.bad[:20]:
        print(line)
