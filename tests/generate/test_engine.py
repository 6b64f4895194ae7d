"""Every request is answered as `generate` answers it alone, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from calm_graph.errors import InputError, OverloadedError
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.requests import GenerationRequest, PromptOutput, Result, TokenOutput
from calm_graph.generate.sampling import Sampling
from calm_graph.model.composed import ComposedModel
from tests.model.cases import CASES, COMPLETIONS, PROMPTS, compose, off
from tests.model.pico import CONTEXT, Zoo

TEXTS = [*PROMPTS, *COMPLETIONS, "price of apples", "so", "The quick brown fox jumps over the lazy dog; " * 2]


def ids_of(model: ComposedModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def ask(model: ComposedModel, text: str, *, id: str = "a", composition: str = "c", **changes: Any) -> GenerationRequest:
    sampling = Sampling(**{"max_new_tokens": 12, **changes.pop("sampling", {})})
    return GenerationRequest(
        id=id, composition=composition, prompt_ids=ids_of(model, text), sampling=sampling, **changes
    )


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, list[Any]]:
    for request in requests:
        engine.add(request)
    found: dict[str, list[Any]] = {}
    while engine.has_work:
        collect(found, engine.step())
    return found


def collect(found: dict[str, list[Any]], results: Sequence[Result]) -> None:
    for id, output in results:
        if isinstance(output, Exception):
            raise output
        found.setdefault(id, []).append(output)


def tokens(outputs: Sequence[Any], choice: int = 0) -> list[int]:
    found = [output for output in outputs if isinstance(output, TokenOutput) and output.choice == choice]
    assert [output.finish_reason is None for output in found] == [True] * (len(found) - 1) + [False]
    return [output.token_id for output in found if output.token_id is not None]


def text(outputs: Sequence[Any], choice: int = 0) -> str:
    return "".join(output.text for output in outputs if isinstance(output, TokenOutput) and output.choice == choice)


def alone(
    model: ComposedModel, prompt: str, num_tokens: int, *, scales: Mapping[str, float] | None = None
) -> list[int]:
    ids = torch.tensor([ids_of(model, prompt)])
    with model.augmenters(scales or {}):
        out = model.generate(ids, do_sample=False, max_new_tokens=num_tokens, pad_token_id=0)
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case != "encoder"])
def test_requests_of_every_kind_join_and_leave(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    engine = Engine({"c": model}, EngineSettings(prefill_tokens=5, max_running=3, prefix_tokens=0))
    lengths = [3, 14, 8, 11, 6]
    requests = [
        ask(model, prompt, id=str(place), sampling={"max_new_tokens": length})
        for place, (prompt, length) in enumerate(zip(TEXTS, lengths, strict=False))
    ]
    found = run(engine, *requests)
    for place, (prompt, length) in enumerate(zip(TEXTS, lengths, strict=False)):
        assert tokens(found[str(place)]) == alone(model, prompt, length), place
    assert engine.statistics().num_running == 0
    assert engine.statistics().cache_tokens == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_arrivals_of_several_compositions_and_scales(zoo: Zoo, seed: int) -> None:
    cases = ["same", "other", "open", "mixed", "nested", "same-prompt", "other-causal"]
    models = {case: compose(zoo, case) for case in cases}
    engine = Engine(models, EngineSettings(prefill_tokens=16, max_running=6))
    chance = random.Random(seed)
    waiting, expected, found = [], {}, {}
    for number in range(16):
        case = chance.choice(cases)
        model = models[case]
        scales = chance.choice([{}, off(model), {name: chance.choice([0.0, 0.5, 1.0, 2.0]) for name in off(model)}])
        prompt, length = chance.choice(TEXTS), chance.randint(1, 12)
        name = case if chance.random() < 0.8 else engine.anchor_name
        scales = scales if name == case else {}
        waiting.append(
            ask(model, prompt, id=str(number), composition=name, scales=scales, sampling={"max_new_tokens": length})
        )
        expected[str(number)] = alone(model, prompt, length, scales=scales if name == case else off(model))
    while waiting or engine.has_work:
        for _ in range(chance.choice([0, 0, 1, 3])):
            if waiting:
                engine.add(waiting.pop())
        collect(found, engine.step())
    assert {id: tokens(outputs) for id, outputs in found.items()} == expected
    statistics = engine.statistics()
    assert statistics.num_new_tokens == sum(map(len, expected.values()))
    assert sum(statistics.num_finished.values()) == 16


def test_an_anchor_with_a_sliding_window(zoo: Zoo) -> None:
    model = compose(zoo, "other", anchor="window-anchor")
    engine = Engine({"c": model}, EngineSettings(prefill_tokens=7))
    found = run(engine, *[ask(model, prompt, id=prompt) for prompt in TEXTS])
    assert {id: tokens(outputs) for id, outputs in found.items()} == {
        prompt: alone(model, prompt, 12) for prompt in TEXTS
    }


def test_what_is_off_does_not_run(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    engine = Engine({"c": model})
    run(engine, ask(model, TEXTS[0], scales=off(model)))
    assert engine.statistics().augmenter_tokens == {}
    assert engine.statistics().skipped_tokens == dict.fromkeys(off(model), len(ids_of(model, TEXTS[0])))
    run(engine, ask(model, TEXTS[0], scales={**off(model), "same": 1.0}), ask(model, TEXTS[1], scales=off(model)))
    num_tokens = len(ids_of(model, TEXTS[0])) + 12 - 1
    assert engine.statistics().augmenter_tokens == {"same": num_tokens}


def test_several_answers_are_drawn_independently_and_again_the_same(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    sampling = {"temperature": 1.5, "seed": 7, "max_new_tokens": 10}
    request = ask(model, TEXTS[1], sampling=sampling, num_choices=3)
    found = run(Engine({"c": model}), request)["a"]
    answers = [tokens(found, choice) for choice in range(3)]
    assert len({*map(tuple, answers)}) == 3
    others = [ask(model, prompt, id=prompt, sampling={"temperature": 1.0}) for prompt in TEXTS]
    again = run(Engine({"c": model}, EngineSettings(prefill_tokens=3)), *others, request)["a"]
    assert [tokens(again, choice) for choice in range(3)] == answers
    single = run(Engine({"c": model}), ask(model, TEXTS[1], sampling=sampling))["a"]
    assert tokens(single) == answers[0]


@pytest.mark.parametrize("case", ["same", "other", "mixed", "same-prompt"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_goes_on_where_a_lost_engine_ended(zoo: Zoo, case: str, temperature: float) -> None:
    model = compose(zoo, case)
    sampling = {"temperature": temperature, "seed": 3, "max_new_tokens": 14, "stop": ["zzz"], "frequency_penalty": 0.5}
    whole = run(Engine({"c": model}), ask(model, TEXTS[2], sampling=sampling))["a"]
    for cut in (1, 6, 13):
        ids = tuple(tokens(whole)[:cut])
        rest = run(Engine({"c": model}), ask(model, TEXTS[2], sampling=sampling, resume_ids=ids))["a"]
        assert tokens(rest) == tokens(whole)[cut:]
        assert text(whole[:cut]) + text(rest) == text(whole)


def test_cancelled_requests_leave_within_a_step(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model}, EngineSettings(max_running=2, prefill_tokens=4))
    requests = [ask(model, prompt, id=prompt, sampling={"max_new_tokens": 30}) for prompt in TEXTS[:4]]
    for request in requests:
        engine.add(request)
    found: dict[str, list[Any]] = {}
    for _ in range(6):
        collect(found, engine.step())
    running = next(iter(found))
    counts = {id: len(outputs) for id, outputs in found.items()}
    for id in (running, TEXTS[3]):  # one under way, one waiting
        engine.cancel(id)
    collect(found, engine.step())
    assert len(found[running]) == counts[running]
    while engine.has_work:
        collect(found, engine.step())
    assert TEXTS[3] not in found
    for id in {*TEXTS[:3]} - {running}:
        assert tokens(found[id]) == alone(model, id, 30)
    assert engine.statistics().num_finished == {"cancelled": 2, "length": 2}


def test_a_long_prompt_does_not_stall_the_others(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    engine = Engine({"c": model}, EngineSettings(prefill_tokens=4))
    engine.add(ask(model, "so", id="short", sampling={"max_new_tokens": 40}))
    engine.step()
    engine.add(ask(model, TEXTS[-1], id="long"))
    steps = [[id for id, _ in engine.step()]]
    while "long" not in steps[-1]:
        steps.append([id for id, _ in engine.step()])
    assert len(steps) > len(ids_of(model, TEXTS[-1])) // 4, "first the augmenter's text, then the anchor's, in pieces"
    assert all("short" in step for step in steps), "each step goes on with what is under way"


@pytest.mark.parametrize("case", ["other", "same", "other-causal", "other-prompt", "nested"])
def test_the_prompts_logprobs_know_nothing_of_what_follows(zoo: Zoo, case: str) -> None:
    """As a harness scores answers: both are in the prompt, and neither may be told beforehand by an augmenter."""
    model = compose(zoo, case)
    engine = Engine({"c": model}, EngineSettings(prefill_tokens=7))
    sampling = {"prompt_logprobs": 0, "max_new_tokens": 1}
    start = "price of apples is 3 and"
    both = [start + " that is all", start + " pears are more"]
    (first, *_), (second, *_) = (run(engine, ask(model, each, sampling=sampling))["a"] for each in both)
    count = len(ids_of(model, start))
    found = [[entries[0].logprob for entries in each.logprobs[1:count]] for each in (first, second)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    alone = Engine({"c": model})
    without = run(alone, ask(model, both[0], scales=dict.fromkeys(off(model), 0.0), sampling=sampling))["a"][0]
    assert found[0] != pytest.approx([entries[0].logprob for entries in without.logprobs[1:count]], abs=1e-3)


@pytest.mark.parametrize("case", ["other", "same", "other-causal", "nested"])
def test_an_answer_is_the_same_whether_its_prompt_is_scored_or_not(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    engine = Engine({"c": model}, EngineSettings(prefill_tokens=5))
    for place, prompt in enumerate(TEXTS[:4]):
        request = ask(model, prompt, id=str(place), sampling={"prompt_logprobs": 0})
        logged, *outputs = run(engine, request)[str(place)]
        assert isinstance(logged, PromptOutput) and len(logged.logprobs) == len(request.prompt_ids)
        assert tokens(outputs) == alone(model, prompt, 12)
    assert engine.statistics().num_finished == {"length": 4}


def test_a_prompt_that_is_read_as_a_whole_is_not_scored(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    engine = Engine({"c": model})
    request = ask(model, "price of", sampling={"prompt_logprobs": 0})
    with pytest.raises(
        InputError, match=r"prompt_logprobs: augmenter 'reader' reads the prompt as a whole.*'reader': 0"
    ):
        engine.add(request)
    assert run(engine, ask(model, "price of", sampling={"prompt_logprobs": 0}, scales={"reader": 0.0}))["a"]


def test_logprobs_are_those_of_the_model(zoo: Zoo) -> None:
    model = compose(zoo, "other-causal")
    request = ask(model, TEXTS[1], sampling={"logprobs": 3, "prompt_logprobs": 2, "max_new_tokens": 4})
    prompt, *found = run(Engine({"c": model}, EngineSettings(prefill_tokens=3)), request)["a"]
    assert isinstance(prompt, PromptOutput)
    ids = torch.tensor([[*request.prompt_ids, *tokens(found)]])
    with torch.no_grad():
        logits = model(ids, prompt_lengths=torch.tensor([len(request.prompt_ids)])).logits
    expected = logits.log_softmax(dim=-1)[0]
    assert prompt.logprobs[0] is None and len(prompt.logprobs) == len(request.prompt_ids)
    both = [*prompt.logprobs[1:], *[output.logprobs for output in found]]
    for place, position in enumerate(both):
        assert position is not None
        own, *top = position
        assert own.token_id == ids[0, place + 1]
        assert own.logprob == pytest.approx(float(expected[place, own.token_id]), abs=1e-4)
        assert [each.token_id for each in top] == expected[place].topk(len(top)).indices.tolist()
    assert len(found[0].logprobs) == 4


def test_only_the_prompt_is_scored(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    request = ask(model, TEXTS[1], sampling={"max_new_tokens": 0, "prompt_logprobs": 0})
    prompt, end = run(Engine({"c": model}), request)["a"]
    assert all(len(position) == 1 for position in prompt.logprobs[1:])
    assert (end.token_id, end.finish_reason) == (None, "length")


def test_stop_texts_and_tokens(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    whole = run(Engine({"c": model}), ask(model, TEXTS[1], sampling={"ignore_eos": True}))["a"]
    words = text(whole)
    stop = words[4:7]
    cut = words.index(stop)
    found = run(Engine({"c": model}), ask(model, TEXTS[1], sampling={"stop": [stop, "never"]}))["a"]
    assert (text(found), found[-1].finish_reason, found[-1].stop_reason) == (words[:cut], "stop", stop)
    kept = run(Engine({"c": model}), ask(model, TEXTS[1], sampling={"stop": [stop], "include_stop": True}))["a"]
    assert text(kept) == words[: cut + len(stop)]
    token = tokens(whole)[5]
    first = tokens(whole).index(token)
    ended = run(Engine({"c": model}), ask(model, TEXTS[1], sampling={"stop_token_ids": frozenset([token])}))["a"]
    assert (tokens(ended), ended[-1].stop_reason) == (tokens(whole)[: first + 1], token)
    sampling = {"stop_token_ids": frozenset([token]), "min_new_tokens": 9}
    later = run(Engine({"c": model}), ask(model, TEXTS[1], sampling=sampling))["a"]
    assert len(tokens(later)) >= 9 and token not in tokens(later)[:8]


def test_the_end_token_ends_an_answer(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compose(zoo, "same")
    whole = alone(model, TEXTS[1], 12)
    end = whole[6]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    found = run(Engine({"c": model}), ask(model, TEXTS[1]), ask(model, TEXTS[1], id="b", sampling={"ignore_eos": True}))
    assert tokens(found["a"]) == whole[: whole.index(end) + 1] == alone(model, TEXTS[1], 12)
    assert (found["a"][-1].finish_reason, found["a"][-1].stop_reason) == ("stop", None)
    assert tokens(found["b"]) == whole


def test_a_prompt_read_before_is_not_read_again(zoo: Zoo) -> None:
    for case in ("other", "same-prompt", "mixed"):
        model = compose(zoo, case)
        engine = Engine({"c": model})
        expected = alone(model, TEXTS[1], 12)
        num_prompt = len(ids_of(model, TEXTS[1]))
        for turn in range(3):
            assert tokens(run(engine, ask(model, TEXTS[1]))["a"]) == expected
            assert engine.statistics().num_reused_tokens == turn * num_prompt
        # Another factor gives other states.
        assert tokens(run(engine, ask(model, TEXTS[1], scales=off(model)))["a"]) == alone(
            model, TEXTS[1], 12, scales=off(model)
        )
        assert engine.statistics().num_reused_tokens == 2 * num_prompt


def test_without_augmenters_any_beginning_is_reused(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model})
    run(engine, ask(model, TEXTS[1], scales=off(model)))
    longer = TEXTS[1] + " it runs"
    found = run(engine, ask(model, longer, scales=off(model)))
    assert tokens(found["a"]) == alone(model, longer, 12, scales=off(model))
    assert engine.statistics().num_reused_tokens == len(ids_of(model, TEXTS[1]))


def test_contributions_are_of_the_row_and_of_the_augmenters_that_are_on(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    asked = ask(model, TEXTS[1], scales={"reader": 0.0}, contributions=True)
    (single,) = run(Engine({"c": model}), asked).values()
    others = [ask(model, prompt, id=prompt) for prompt in TEXTS]
    crowded = run(Engine({"c": model}), *others, asked)["a"]
    assert all(output.contributions is None for output in run(Engine({"c": model}), others[0])[TEXTS[0]])
    for one, other in zip(single, crowded, strict=True):
        assert {*one.contributions} == {"same", "window"} and min(one.contributions.values()) > 0
        assert other.contributions == pytest.approx(one.contributions, rel=1e-4)


def test_too_many_requests_are_refused_and_told_when_to_come_back(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model}, EngineSettings(max_running=1, max_waiting=2))
    for number in range(3):  # one of them has room, and waits for a step only
        engine.add(ask(model, "so", id=str(number)))
    with pytest.raises(OverloadedError, match="3 requests wait already") as refused:
        engine.add(ask(model, "so", id="3"))
    assert refused.value.retry_after_s >= 1
    engine.step()
    assert engine.refusal() is not None  # two wait for the one that is under way
    assert len(run(engine)) == 3 and engine.refusal() is None


def test_the_cache_never_holds_more_than_it_may(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    engine = Engine({"c": model}, EngineSettings(max_cache_tokens=90, max_running=16, prefix_tokens=0))
    for prompt in TEXTS[:6]:
        engine.add(ask(model, prompt, id=prompt))
    found: dict[str, list[Any]] = {}
    most = 0
    while engine.has_work:
        collect(found, engine.step())
        most = max(most, engine.statistics().cache_tokens)
    assert 0 < most <= 90
    assert {id: tokens(outputs) for id, outputs in found.items()} == {
        prompt: alone(model, prompt, 12) for prompt in TEXTS[:6]
    }


def test_the_context_ends_an_answer(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    ids = ids_of(model, TEXTS[-1])
    request = ask(model, TEXTS[-1], sampling={"max_new_tokens": 10_000, "ignore_eos": True})
    found = run(Engine({"c": model}), request)["a"]
    assert found[-1].finish_reason == "length"
    # The augmenter, of the same context, keeps room for one more segment.
    assert CONTEXT - 8 <= len(ids) + len(tokens(found)) <= CONTEXT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"composition": "d"}, "composition: got 'd', but there is"),
        ({"scales": {"sane": 1.0}}, "augmenters: got 'sane', but the composition has same"),
        ({"scales": {"same": float("nan")}}, "got nan, but a factor"),
        ({"num_choices": 17}, "num_choices: got 17, allowed are 1..16"),
        ({"sampling": {"logit_bias": {100_000: 1.0}}}, "logit_bias: got token 100000"),
        ({"composition": "anchor", "scales": {"same": 1.0}}, "the anchor alone has none"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(zoo: Zoo, changes: dict[str, Any], message: str) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model})
    with pytest.raises(InputError, match=message):
        engine.add(ask(model, "so", **changes))
    assert not engine.has_work


def test_prompts_that_are_none_or_too_long_are_refused(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    engine = Engine({"c": model})
    for ids, message in [((), "got no token"), ((1,) * CONTEXT, f"got {CONTEXT} tokens"), ((10**6,), "vocabulary")]:
        with pytest.raises(InputError, match=message):
            engine.add(GenerationRequest(id="a", composition="c", prompt_ids=ids))


def test_models_of_other_anchors_are_refused(zoo: Zoo) -> None:
    with pytest.raises(InputError, match="an engine has one for all"):
        Engine({"a": compose(zoo, "same"), "b": compose(zoo, "same", anchor="window-anchor")})


def test_an_engine_that_could_do_nothing_is_refused() -> None:
    for field in ("max_running", "max_cache_tokens", "prefill_tokens", "max_prefills"):
        with pytest.raises(ValueError, match=f"{field}: got 0, but 1 or more is allowed"):
            EngineSettings(**{field: 0})
