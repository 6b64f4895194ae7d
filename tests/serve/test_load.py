"""Load on a real server of a pico composition: what is counted, timed and refused."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import time
from collections.abc import Iterator

import pytest

from calm_graph.errors import InputError, ServingError
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.http.settings import HttpSettings
from calm_graph.interrupts import StopRequest
from calm_graph.model.composed import ComposedModel
from calm_graph.serve.load.client import find_target
from calm_graph.serve.load.parts import Load, LoadResult, Target, percentile
from calm_graph.serve.load.run import ragged_prompts, run_load
from calm_graph.serve.local import LocalClient
from tests.generate.conftest import answering as answering  # a fixture
from tests.http.conftest import Served, serving

PROMPTS = ["price of apples", "The quick brown fox jumps over the lazy dog", "so"]


@pytest.fixture(scope="module")
def url(answering: ComposedModel) -> Iterator[str]:
    client = LocalClient({"prices": answering}, EngineSettings(max_running=2, max_waiting=2))
    try:
        with serving(client) as served:  # type: ignore[arg-type]
            yield served.url
    finally:
        client.close()


def put(url: str, load: Load, *, stop: StopRequest | None = None, chat: bool = False) -> LoadResult:
    async def run() -> LoadResult:
        target = await find_target(url, model=None, api_key=None, chat=chat)
        return await run_load(target, load, itertools.cycle(PROMPTS), stop=stop)

    return asyncio.run(run())


@pytest.mark.parametrize("chat", [False, True])
def test_every_token_is_counted_and_timed(url: str, chat: bool) -> None:
    began = time.perf_counter()
    result = put(url, Load(concurrency=2, num_requests=5, max_tokens=8, min_tokens=8), chat=chat)
    took_s = time.perf_counter() - began
    assert result.is_whole and not result.errors and len(result.replies) == 5
    assert [reply.num_tokens for reply in result.replies] == [8] * 5
    for reply in result.replies:
        assert reply.first_token_s is not None and reply.status == 200
        assert 0 < reply.first_token_s + sum(reply.gaps_s) <= reply.seconds <= took_s
    assert result.tokens_per_s == pytest.approx(40 / result.seconds)
    assert result.first_token_s(50) <= result.first_token_s(95) <= result.first_token_s(99)


def test_random_times_keep_to_their_rate_whatever_the_answers_do(served: Served) -> None:
    load = Load(rate=100, num_requests=40, max_tokens=2, seed=3)
    started: list[float] = []

    def prompts() -> Iterator[str]:
        while True:
            started.append(time.perf_counter())
            yield "!slow"

    async def run() -> LoadResult:
        target = await find_target(served.url, model=None, api_key=None, chat=False)
        return await run_load(target, load, prompts())

    result = asyncio.run(run())
    assert len(result.answered) == 40 and served.client.most_under_way > 2
    assert 0.2 < started[-1] - started[0] < 2
    assert len({round(after - before, 4) for before, after in itertools.pairwise(started)}) > 10


def test_what_is_refused_is_counted_by_its_code(url: str) -> None:
    result = put(url, Load(concurrency=12, num_requests=24, max_tokens=30, min_tokens=30))
    refused = [reply for reply in result.replies if reply.error]
    assert set(result.errors) == {"overloaded"} and len(result.answered) + len(refused) == 24
    assert all(reply.status == 429 and (reply.retry_after_s or 0) >= 1 for reply in refused)


def test_half_a_stream_is_an_error(served: Served) -> None:
    target = Target(url=f"{served.url}/v1", model="garden")
    load = Load(concurrency=1, num_requests=3, max_tokens=8)
    result = asyncio.run(run_load(target, load, itertools.cycle(["!break", "!refuse", "whole"])))
    assert result.errors == {"service_unavailable": 1, "invalid_value": 1} and len(result.answered) == 1
    assert [reply.num_tokens for reply in result.answered] == [8]


def test_a_stop_keeps_what_was_measured(served: Served) -> None:
    stop = StopRequest()
    load = Load(concurrency=2, duration_s=60, max_tokens=4)
    target = Target(url=f"{served.url}/v1", model="garden")

    async def run() -> LoadResult:
        asyncio.get_running_loop().call_later(0.5, setattr, stop, "requested", True)
        return await run_load(target, load, itertools.cycle(["so", "!slow"]), stop=stop)

    result = asyncio.run(run())
    assert not result.is_whole and result.replies and not result.errors
    assert 0.4 < result.seconds < 5


def test_nothing_measured_has_no_figures() -> None:
    record = LoadResult(load=Load(concurrency=1, num_requests=1), seconds=0.0, replies=[]).record()
    assert record["first_token_s"] == {"p50": None, "p95": None, "p99": None}
    assert record["output_tokens_per_s"] == 0


def test_percentiles_are_values_that_came() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert math.isnan(percentile([], 50))


def test_prompts_are_ragged_repeatable_and_never_alike() -> None:
    prompts = [*itertools.islice(ragged_prompts(1, longest=300), 200)]
    assert prompts == [*itertools.islice(ragged_prompts(1, longest=300), 200)]
    assert len(set(prompts)) == 200
    lengths = sorted(map(len, prompts))
    assert lengths[0] < 25 and 250 < lengths[-1] <= 300


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concurrency": 1}, "never end"),
        ({"num_requests": 1}, "one of them is needed"),
        ({"num_requests": 1, "concurrency": 1, "rate": 1.0}, "one of them is needed"),
        ({"num_requests": 0, "concurrency": 1}, "num_requests: got 0"),
        ({"num_requests": 1, "rate": math.nan}, "rate: got nan"),
    ],
)
def test_what_is_no_load(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Load(**values)  # type: ignore[arg-type]


def find(url: str, *, model: str | None = None, api_key: str | None = None) -> Target:
    return asyncio.run(find_target(url, model=model, api_key=api_key, chat=False))


def test_a_server_is_found_with_or_without_v1(served: Served) -> None:
    assert (
        find(served.url)
        == find(f"{served.url}/v1/")
        == Target(url=f"{served.url}/v1", model="garden", context_length=192)
    )


def test_one_clear_error_for_what_cannot_be_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ServingError, match="no server answers there"):
            find(f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(InputError, match="http://HOST:PORT is needed"):
        find("127.0.0.1:8000")
    with pytest.raises(InputError, match=r"model: got 'kitchen', but .* has 'garden', 'arith'"):
        find(served.url, model="kitchen")
    with pytest.raises(ServingError, match="is it an OpenAI-compatible server"):
        find(f"{served.url}/nowhere")
    monkeypatch.setenv("CALM_GRAPH_API_KEYS", "me:secret")
    with serving(settings=HttpSettings()) as guarded:
        with pytest.raises(ServingError, match="wants an API key"):
            find(guarded.url)
        with pytest.raises(ServingError, match="refuses the API key"):
            find(guarded.url, api_key="wrong")
        assert find(guarded.url, api_key="secret").model == "garden"
