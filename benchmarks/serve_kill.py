"""200 requests at concurrency 16 over two engines on Ray, one of which is killed every 20 requests: none fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

from openai import AsyncOpenAI, OpenAIError

from benchmarks.bar import Bar

NUM_REQUESTS = 200
CONCURRENCY = 16
KILL_EVERY = 20
NUM_TOKENS = 40


def measure() -> Bar:
    """Ask the same questions undisturbed and disturbed; the value is how many failed or were answered differently."""
    from examples.arithmetic.data import test_rows
    from examples.arithmetic.demo import SHIPPED, free_port
    from examples.arithmetic.served import served

    questions = [row.prompt for row in test_rows("mixed", ["garden", "kitchen"], split="unseen", count=NUM_REQUESTS)]
    with served(SHIPPED, num_replicas=2, port=free_port()) as address:
        expected, _ = asyncio.run(_ask_all(address, questions, kill=False))
        found, num_killed = asyncio.run(_ask_all(address, questions, kill=True))
    failed = sum(answer is None for answer in found)
    different = sum(answer is not None and answer != want for answer, want in zip(found, expected, strict=True))
    undisturbed = sum(answer is None for answer in expected)
    print(f"{len(found)} requests, {num_killed} engines killed: {failed} failed, {different} answered differently")
    value = failed + different + undisturbed
    holds = value == 0 and num_killed >= NUM_REQUESTS // KILL_EVERY - 2
    return Bar(name="serve_kill", value=value, bar=0, holds=holds, unit="failed or different requests of 200")


async def _ask_all(address: str, questions: list[str], *, kill: bool) -> tuple[list[str | None], int]:
    room = asyncio.Semaphore(CONCURRENCY)
    killed: set[int] = set()
    num_begun = 0
    client = AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)

    async def ask(question: str) -> str | None:
        nonlocal num_begun
        async with room:
            num_begun += 1
            if kill and num_begun % KILL_EVERY == 0:
                await asyncio.to_thread(_kill_one, killed)
            text = ""
            try:
                stream = await client.completions.create(
                    model="demo-both",
                    prompt=question,
                    max_tokens=NUM_TOKENS,
                    temperature=0,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                async for chunk in stream:
                    text += chunk.choices[0].text if chunk.choices else ""
            except OpenAIError as error:
                print(f"failed: {error}")
                return None
            return text

    async with client:
        return await asyncio.gather(*(ask(question) for question in questions)), len(killed)


def _kill_one(killed: set[int]) -> None:
    listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    engines = [int(line.split()[0]) for line in listing.splitlines() if "ray::ServeReplica:calm_graph:engine" in line]
    for pid in engines:
        if pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
            return
