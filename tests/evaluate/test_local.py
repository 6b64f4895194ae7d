"""Systems in this process: answers and scores are those of the model alone, whatever else is in the batch."""

from __future__ import annotations

import math

import pytest
import torch

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.systems.base import Decoding, System
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.model.composed import ComposedModel
from tests.model.pico import Zoo

PROMPTS = ["Hello world", "price of apples is 3 and price of pears is", "The quick brown fox", "so", "ok?"]
COMPLETIONS = [", this is a small", " 14, so 3 + 14 = 17", " jumps", " Grüße", " The"]


def ignore(index: int) -> None:
    pass


@pytest.fixture(scope="module")
def plain(zoo: Zoo) -> PlainSystem:
    return PlainSystem.of_card(zoo.registry.get("anchor"), name="anchor", batch_size=3)


@pytest.fixture(scope="module")
def anchor(composed: ComposedModel) -> EngineSystem:
    return EngineSystem.anchor(composed, batch_size=3)


def test_a_plain_score_is_the_sum_over_the_models_own_logits(plain: PlainSystem) -> None:
    found = plain.score(PROMPTS, COMPLETIONS, done=ignore)
    for prompt, completion, nats in zip(PROMPTS, COMPLETIONS, found, strict=True):
        before = plain.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = plain.tokenizer(completion, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = plain.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = -logits.log_softmax(-1).gather(1, torch.tensor(after)[:, None]).sum().item()
        assert nats == pytest.approx(expected, rel=1e-4)


def test_the_anchor_alone_is_the_same_by_both_ways(plain: PlainSystem, anchor: EngineSystem) -> None:
    by_engine = anchor.score(PROMPTS, COMPLETIONS, done=ignore)
    assert by_engine == pytest.approx(plain.score(PROMPTS, COMPLETIONS, done=ignore), rel=1e-4)
    decoding = Decoding(max_new_tokens=9)
    assert anchor.generate(PROMPTS, decoding, done=ignore) == plain.generate(PROMPTS, decoding, done=ignore)


def test_a_composition_is_scored_as_its_loss_says(composed: ComposedModel) -> None:
    system = EngineSystem(composed, batch_size=2)
    found = system.score(PROMPTS, COMPLETIONS, done=ignore)
    for prompt, completion, nats in zip(PROMPTS, COMPLETIONS, found, strict=True):
        before = composed.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = composed.tokenizer(completion, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([before + after])
        labels = ids.clone()
        labels[0, : len(before)] = -100
        with torch.no_grad():
            loss = composed(input_ids=ids, labels=labels, prompt_texts=[prompt], num_items_in_batch=1).loss
        assert nats == pytest.approx(loss.item(), rel=1e-4)
    off = EngineSystem(composed, scales={"other": 0.0}, batch_size=2)
    assert off.score(PROMPTS, COMPLETIONS, done=ignore) != pytest.approx(found, rel=1e-3)
    assert off.identity != system.identity


@pytest.mark.parametrize("kind", ["plain", "anchor"])
def test_a_text_without_a_prompt_is_scored_whole(
    kind: str, plain: PlainSystem, anchor: EngineSystem, composed: ComposedModel
) -> None:
    system: System = plain if kind == "plain" else anchor
    (nats,) = system.score([""], ["so"], done=ignore)
    ids = [plain.tokenizer.bos_token_id, *plain.tokenizer("so", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logits = plain.model(torch.tensor([ids])).logits[0, :-1]
    expected = -logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    assert nats == pytest.approx(expected, rel=1e-4)
    (composed_nats,) = EngineSystem(composed).score([""], ["so"], done=ignore)
    assert math.isfinite(composed_nats)


@pytest.mark.parametrize("kind", ["plain", "composed"])
def test_stop_texts_end_answers_and_are_not_part_of_them(
    kind: str, plain: PlainSystem, composed: ComposedModel
) -> None:
    system: System = plain if kind == "plain" else EngineSystem(composed, batch_size=3)
    whole = [answers[0] for answers in system.generate(PROMPTS, Decoding(max_new_tokens=16), done=ignore)]
    stop = whole[0][3:5]
    done: list[int] = []
    cut = system.generate(PROMPTS, Decoding(max_new_tokens=16, stop=(stop,)), done=done.append)
    assert [answers[0] for answers in cut] == [text.partition(stop)[0] for text in whole]
    assert sorted(done) == list(range(len(PROMPTS)))


@pytest.mark.parametrize("kind", ["plain", "composed"])
def test_draws_depend_on_the_seed(kind: str, plain: PlainSystem, composed: ComposedModel) -> None:
    system: System = plain if kind == "plain" else EngineSystem(composed, batch_size=3)
    decoding = Decoding(max_new_tokens=6, num_samples=4, temperature=1.0, seed=1)
    first = system.generate(PROMPTS[:2], decoding, done=ignore)
    assert [len(set(answers)) > 1 for answers in first] == [True, True]
    assert system.generate(PROMPTS[:2], decoding, done=ignore) == first
    other = Decoding(max_new_tokens=6, num_samples=4, temperature=1.0, seed=2)
    assert system.generate(PROMPTS[:2], other, done=ignore) != first


def test_what_is_too_long_is_refused_and_the_next_is_answered(plain: PlainSystem, composed: ComposedModel) -> None:
    for system in (plain, EngineSystem(composed)):
        with pytest.raises(EvaluationError, match=r"context|tokens"):
            system.generate(["word " * 400], Decoding(), done=ignore)
        with pytest.raises(EvaluationError, match=r"context|tokens"):
            system.score(["word " * 400], ["x"], done=ignore)
        with pytest.raises(EvaluationError, match="no token"):
            system.score(["word"], [""], done=ignore)
        assert system.generate(["so"], Decoding(max_new_tokens=2), done=ignore)


def test_an_engine_that_was_interrupted_starts_afresh(composed: ComposedModel) -> None:
    system = EngineSystem(composed, batch_size=2)
    expected = EngineSystem(composed, batch_size=2).generate(PROMPTS, Decoding(max_new_tokens=5), done=ignore)

    def stop(index: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        system.generate(PROMPTS, Decoding(max_new_tokens=5), done=stop)
    assert system.generate(PROMPTS, Decoding(max_new_tokens=5), done=ignore) == expected
