"""An engine asked from asyncio: many at once, clients that go away, a failing step, an orderly end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from calm_graph.errors import InputError, OverloadedError, ServingError
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.engine_thread import EngineThread
from calm_graph.generate.requests import GenerationRequest, TokenOutput
from calm_graph.model.composed import ComposedModel
from tests.generate.test_engine import TEXTS, alone, ask
from tests.model.cases import compose
from tests.model.pico import Zoo


@pytest.fixture
def model(zoo: Zoo) -> ComposedModel:
    return compose(zoo, "other")


@pytest.fixture
def thread(model: ComposedModel) -> Iterator[EngineThread]:
    thread = EngineThread(Engine({"c": model}, EngineSettings(max_running=4, max_waiting=8)))
    yield thread
    thread.close()


async def answer(thread: EngineThread, request: GenerationRequest) -> list[int]:
    outputs = [output async for output in thread.generate(request)]
    return [output.token_id for output in outputs if isinstance(output, TokenOutput) and output.token_id is not None]


def test_many_at_once(thread: EngineThread, model: ComposedModel) -> None:
    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(*(answer(thread, ask(model, prompt, id=prompt)) for prompt in TEXTS[:8]))

    assert asyncio.run(ask_all()) == [alone(model, prompt, 12) for prompt in TEXTS[:8]]


def test_a_client_that_goes_away_is_not_answered_any_further(thread: EngineThread, model: ComposedModel) -> None:
    async def leave() -> None:
        outputs = thread.generate(ask(model, TEXTS[1], sampling={"max_new_tokens": 90, "ignore_eos": True}))
        await anext(outputs)
        await outputs.aclose()  # type: ignore[attr-defined]
        while thread.statistics().num_running:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert thread.statistics().num_finished == {"cancelled": 1}
    assert thread.statistics().num_new_tokens < 90


def test_errors_reach_the_one_who_asked(thread: EngineThread, model: ComposedModel) -> None:
    async def both() -> list[object]:
        wrong = answer(thread, ask(model, "so", id="wrong", composition="d"))
        return await asyncio.gather(answer(thread, ask(model, "so")), wrong, return_exceptions=True)

    right, wrong = asyncio.run(both())
    assert right == alone(model, "so", 12)
    assert isinstance(wrong, InputError)


def test_overload(thread: EngineThread, model: ComposedModel) -> None:
    async def flood() -> list[object]:
        asked = (answer(thread, ask(model, TEXTS[1], id=str(number))) for number in range(40))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(flood())
    refused = [each for each in found if isinstance(each, OverloadedError)]
    answered = [each for each in found if isinstance(each, list)]
    assert refused and len(refused) + len(answered) == 40
    assert answered == [alone(model, TEXTS[1], 12)] * len(answered)


def test_who_has_room_is_not_refused_because_all_come_at_once(thread: EngineThread, model: ComposedModel) -> None:
    async def burst() -> list[list[int]]:
        return await asyncio.gather(*(answer(thread, ask(model, TEXTS[1], id=str(number))) for number in range(4 + 8)))

    assert asyncio.run(burst()) == [alone(model, TEXTS[1], 12)] * 12


def test_a_refusal_does_not_wait_for_a_step(
    thread: EngineThread, model: ComposedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = thread._engine.step

    def slow() -> object:
        time.sleep(0.5)
        return step()

    async def refused_after() -> float:
        asked = [asyncio.create_task(answer(thread, ask(model, TEXTS[1], id=str(number)))) for number in range(13)]
        began = time.perf_counter()
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        took_s = time.perf_counter() - began
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return took_s

    monkeypatch.setattr(thread._engine, "step", slow)
    assert asyncio.run(refused_after()) < 0.8  # the first requests may be in a step when the last one comes


def test_a_failing_step_is_told_and_the_next_request_is_answered(
    thread: EngineThread, model: ComposedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("calm_graph.generate.batch.Batch.step", fail)
        with pytest.raises(ServingError, match="the request was not at fault"):
            asyncio.run(answer(thread, ask(model, TEXTS[1])))
    assert asyncio.run(answer(thread, ask(model, TEXTS[1]))) == alone(model, TEXTS[1], 12)


def test_closing_drains(model: ComposedModel) -> None:
    thread = EngineThread(Engine({"c": model}))

    async def ask_and_close() -> tuple[list[int], object]:
        asked = asyncio.create_task(answer(thread, ask(model, TEXTS[1])))
        while not thread.statistics().num_running:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(asyncio.to_thread(thread.close, drain_s=30))
        while thread.is_ready:
            await asyncio.sleep(0.001)
        late = await asyncio.gather(answer(thread, ask(model, "so", id="late")), return_exceptions=True)
        found = await asked
        await closing
        return found, late[0]

    found, late = asyncio.run(ask_and_close())
    assert found == alone(model, TEXTS[1], 12)
    assert isinstance(late, ServingError)


def test_closing_at_once_tells_those_who_wait(model: ComposedModel) -> None:
    thread = EngineThread(Engine({"c": model}))

    async def ask_and_close() -> object:
        asked = asyncio.create_task(answer(thread, ask(model, TEXTS[1], sampling={"max_new_tokens": 90})))
        while not thread.statistics().num_running:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(thread.close)
        return (await asyncio.gather(asked, return_exceptions=True))[0]

    assert isinstance(asyncio.run(ask_and_close()), ServingError)
