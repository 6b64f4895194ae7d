"""The server takes at most a tenth longer for a token than its engine driven directly, HTTP and JSON included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks._serving import Server, load_average, ragged, real_pair, serving
from benchmarks.bar import Bar
from calm_graph.generate.engine import Engine
from calm_graph.generate.models import load_models
from calm_graph.generate.requests import GenerationRequest
from calm_graph.generate.sampling import Sampling
from calm_graph.serve.load.parts import Load

BAR_PERCENT = 10.0
NUM_TOGETHER = 8
NUM_TOKENS = 48
NUM_ROUNDS = 5


def measure() -> Bar:
    """Answer the same eight requests both ways in turns; the value is the median over rounds of processor time added.

    One thread computes on each side, so that processor time is what the work takes whoever else is on the machine; it
    has all that HTTP, JSON and the threads' hand-overs do, but not waiting. The time on the clock is printed beside it.
    """
    torch.set_num_threads(1)
    with real_pair() as checkpoint, serving(checkpoint, "--num-cpus", "1") as server:
        engine = Engine(load_models([(None, checkpoint)], dtype="float32"))
        _directly(engine, ragged(-1))
        _served(server, ragged(-1))
        added, added_clock = [], []
        for number in range(NUM_ROUNDS):
            prompts = ragged(number)
            direct_s, direct_clock_s = _timed(lambda: _directly(engine, prompts), time.process_time)  # noqa: B023
            served_s, served_clock_s = _timed(lambda: _served(server, prompts), server.cpu_s)  # noqa: B023
            added.append(100 * (served_s / direct_s - 1))
            added_clock.append(100 * (served_clock_s / direct_clock_s - 1))
            per_token = 1000 / (NUM_TOGETHER * NUM_TOKENS)
            print(
                f"processor time a token: engine {per_token * direct_s:.2f} ms, server {per_token * served_s:.2f} ms "
                f"({added[-1]:+.1f}%); on the clock {per_token * direct_clock_s:.2f} and "
                f"{per_token * served_clock_s:.2f} ms ({added_clock[-1]:+.1f}%); {load_average()}",
                flush=True,
            )
    percent = statistics.median(added)
    print(f"on the clock, median: {statistics.median(added_clock):+.1f}%")
    return Bar(name="serve_overhead", value=round(percent, 1), bar=BAR_PERCENT, holds=percent <= BAR_PERCENT, unit="%")


def _timed(work: Callable[[], None], clock: Callable[[], float]) -> tuple[float, float]:
    start_s, start_clock_s = clock(), time.perf_counter()
    work()
    return clock() - start_s, time.perf_counter() - start_clock_s


def _served(server: Server, prompts: list[str]) -> None:
    load = Load(concurrency=NUM_TOGETHER, num_requests=len(prompts), max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)
    result = server.put(load, prompts)
    assert [reply.num_tokens for reply in result.answered] == [NUM_TOKENS] * len(prompts), result.errors


def _directly(engine: Engine, prompts: list[str]) -> None:
    (name,) = engine.models
    for number, prompt in enumerate(prompts):
        request = GenerationRequest(
            id=f"{number}",
            composition=name,
            prompt_ids=tuple(engine.tokenizer(prompt)["input_ids"]),
            prompt_text=prompt,
            sampling=Sampling(max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS),
        )
        engine.add(request)
    while engine.has_work:
        engine.step()
