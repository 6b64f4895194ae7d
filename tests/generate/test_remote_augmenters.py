"""An engine whose augmenters are services: answers as alone, nobody waits for a slow one, and an outage is told."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import AugmenterError, AugmenterUnavailableError
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.requests import GenerationRequest, PromptOutput
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.serve.augmenter_model import AugmenterModel, load_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings
from registry import ModelCard, Registry
from registry import remote as remote_module
from registry.card import RemoteAccess
from tests.generate.test_engine import TEXTS, alone, ask, run, text, tokens
from tests.model.pico import Zoo, train_at_random
from tests.serve.augmenters import ServedAugmenter, serving_augmenter

NAMES = ("same", "other")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("same", "qwen2", tokenizer="bytes", seed=2, hidden_size=24)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    return zoo


@pytest.fixture(scope="module")
def loaded(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AugmenterModel]:
    folder = tmp_path_factory.mktemp("cards")
    for name in NAMES:
        (folder / f"{name}.json").write_text(zoo.registry.get(name).model_dump_json(include={"name", "source"}))
    return {
        name: load_augmenter(AugmenterSettings(name=name, layers=(0, 1, 2, 3), registries=(folder,))) for name in NAMES
    }


@pytest.fixture
def services(
    loaded: dict[str, AugmenterModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, ServedAugmenter]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_module, "_known", {})
    with ExitStack() as stack:
        yield {name: stack.enter_context(serving_augmenter(loaded[name])) for name in NAMES}


def compose(zoo: Zoo, services: dict[str, ServedAugmenter], **fields: Any) -> tuple[ComposedModel, ComposedModel]:
    """The composition with its augmenters here, and with both of them there."""
    access = RemoteAccess(timeout_s=fields.pop("timeout_s", 10.0), num_retries=0)
    composition = Composition(
        name="desk",
        anchor="anchor",
        augmenters=[Augmenter(name, attach=every(2), reading="prompt", **fields) for name in NAMES],
    )
    cards = [ModelCard(name=name, source=f"remote:{services[name].url}", remote=access) for name in NAMES]
    models = []
    for registry in (zoo.registry, Registry([zoo.registry.get("anchor"), *cards])):
        models.append(build_model(composition, registry=registry, seed=0))
        train_at_random(models[-1])
    local, remote = models
    return local, remote


def outputs(engine: Engine, *requests: GenerationRequest) -> dict[str, list[Any]]:
    """What comes of requests, errors too."""
    for request in requests:
        engine.add(request)
    found: dict[str, list[Any]] = {request.id: [] for request in requests}
    while engine.has_work:
        for id, output in engine.step():
            found[id].append(output)
    return found


def test_answers_are_those_of_the_local_model_whatever_else_is_in_the_batch(
    zoo: Zoo, services: dict[str, ServedAugmenter]
) -> None:
    local, remote = compose(zoo, services)
    engine = Engine({"c": remote}, EngineSettings(prefill_tokens=16))
    requests = [ask(remote, each, id=str(number)) for number, each in enumerate(TEXTS[:6])]
    requests += [
        ask(remote, TEXTS[0], id="off", scales={"other": 0}),
        ask(remote, TEXTS[1], id="anchor", composition="anchor"),
    ]
    found = run(engine, *requests)
    for number, each in enumerate(TEXTS[:6]):
        assert tokens(found[str(number)]) == alone(local, each, 12)
    assert tokens(found["off"]) == alone(local, TEXTS[0], 12, scales={"other": 0})
    assert tokens(found["anchor"]) == alone(local, TEXTS[1], 12, scales={"other": 0, "same": 0})
    statistics = engine.statistics()
    assert statistics.augmenter_s["other"] > 0 and statistics.augmenter_tokens["same"] > 0
    num_asked = services["other"].trouble.num_asked
    assert num_asked == 6
    assert tokens(run(engine, ask(remote, TEXTS[2]))["a"]) == alone(local, TEXTS[2], 12)
    assert services["other"].trouble.num_asked == num_asked  # the prompt was kept


def test_both_services_are_asked_at_the_same_time(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    local, remote = compose(zoo, services)
    for service in services.values():
        service.trouble.wait_s = 0.5
    for make in (lambda: tokens(run(Engine({"c": remote}), ask(remote, "so"))["a"]), lambda: alone(remote, "so", 12)):
        assert make() == alone(local, "so", 12)
        first, second = sorted(service.trouble.asked_at_s[-1] for service in services.values())
        assert second < first + 0.5  # before the first had answered


def test_others_go_on_while_a_service_is_slow(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    local, remote = compose(zoo, services)
    services["other"].trouble.wait_s = 1.5
    engine = Engine({"c": remote}, EngineSettings(max_prefills=2))
    for number in range(4):  # more than prompts that may be read at the same time
        engine.add(ask(remote, TEXTS[number], id=f"slow{number}"))
    engine.add(ask(remote, TEXTS[5], id="quick", scales={"other": 0}))
    began, ended, longest_step = time.monotonic(), {}, 0.0
    found: dict[str, list[Any]] = {}
    while engine.has_work:
        step_began = time.monotonic()
        for id, output in engine.step():
            assert not isinstance(output, Exception)
            found.setdefault(id, []).append(output)
            ended[id] = time.monotonic() - began
        longest_step = max(longest_step, time.monotonic() - step_began)
    assert ended["quick"] < 1.2 < min(ended[f"slow{number}"] for number in range(4))
    assert longest_step < 0.7
    for number in range(4):
        assert tokens(found[f"slow{number}"]) == alone(local, TEXTS[number], 12)


def test_an_outage_fails_the_request_and_no_other(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    local, remote = compose(zoo, services)
    engine = Engine({"c": remote})
    services["other"].stop()
    found = outputs(engine, ask(remote, "so"), ask(remote, "so", id="off", scales={"other": 0}))
    (error,) = found["a"]
    assert isinstance(error, AugmenterUnavailableError) and "'other': the service http" in str(error)
    assert tokens(found["off"]) == alone(local, "so", 12, scales={"other": 0})


def test_an_outage_while_a_prompt_is_read(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    _, remote = compose(zoo, services)
    services["other"].trouble.wait_s = 30
    engine = Engine({"c": remote})
    engine.add(ask(remote, "so"))
    for _ in range(40):
        assert not engine.step()
    services["other"].stop()
    results = []
    while engine.has_work:
        results += engine.step()
    assert [type(error) for _, error in results] == [AugmenterUnavailableError]


def test_what_may_do_without_is_answered_and_says_so(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    local, remote = compose(zoo, services, if_unavailable="skip", timeout_s=1.0)
    engine = Engine({"c": remote})
    assert tokens(run(engine, ask(remote, "so"))["a"]) == alone(local, "so", 12)
    services["other"].trouble.wait_s = 30
    long = ask(remote, TEXTS[1], id="before", sampling={"max_new_tokens": 40})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(
            engine,
            long,
            ask(remote, TEXTS[0], id="b", sampling={"prompt_logprobs": 0}, contributions=True),
            ask(remote, "so"),  # kept from before: nobody is asked
        )
    for id, prompt, count in (("before", TEXTS[1], 40), ("b", TEXTS[0], 12)):
        assert tokens([each for each in found[id] if not isinstance(each, PromptOutput)]) == alone(
            local, prompt, count, scales={"other": 0}
        )
        assert {each.skipped_augmenters for each in found[id]} == {("other",)}
    assert {each.skipped_augmenters for each in found["a"]} == {()}
    assert [*found["b"][1].contributions] == ["same"] and isinstance(found["b"][0], PromptOutput)
    assert engine.statistics().num_unavailable == {"other": 2}
    services["other"].trouble.wait_s = 0  # it is back: what was made without it is not taken for the whole
    again = run(engine, ask(remote, TEXTS[0], id="again"))["again"]
    assert tokens(again) == alone(local, TEXTS[0], 12) and not again[0].skipped_augmenters
    assert text(again)


def test_a_service_that_answers_nonsense_is_not_skipped(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    _, remote = compose(zoo, services, if_unavailable="skip")
    services["other"].trouble.change = lambda status, body: (status, body[:-1])
    (error,) = outputs(Engine({"c": remote}), ask(remote, "so"))["a"]
    assert isinstance(error, AugmenterError) and not isinstance(error, AugmenterUnavailableError)


def test_a_cancelled_request_waits_for_nobody(zoo: Zoo, services: dict[str, ServedAugmenter]) -> None:
    local, remote = compose(zoo, services)
    services["other"].trouble.wait_s = 30
    engine = Engine({"c": remote})
    engine.add(ask(remote, "so"))
    engine.step()
    engine.cancel("a")
    assert not engine.has_work
    assert tokens(run(engine, ask(remote, "so", scales={"other": 0}))["a"]) == alone(
        local, "so", 12, scales={"other": 0}
    )
    services["other"].stop()
