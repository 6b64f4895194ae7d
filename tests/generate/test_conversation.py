"""Conversations: what is remembered, what is forgotten, and what augmenters are told."""

from __future__ import annotations

from typing import Any

import pytest

from calm_graph.errors import InputError
from calm_graph.generate import conversation as conversation_module
from calm_graph.generate.conversation import Conversation
from calm_graph.generate.sampling import Sampling
from calm_graph.generate.stream import Generation
from calm_graph.model.composed import ComposedModel


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The prompts that reach the model; every answer is `sure`."""
    prompts: list[dict[str, Any]] = []

    def answer(model: ComposedModel, prompt: str, **options: Any) -> Generation:
        prompts.append({"prompt": prompt, **options})
        return Generation("sure", 1, 1, "end", 0.0)

    monkeypatch.setattr(conversation_module, "stream_text", answer)
    return prompts


def test_history_is_rendered_for_the_anchor_and_plain_for_augmenters(
    chatting: ComposedModel, asked: list[dict[str, Any]]
) -> None:
    talk = Conversation(model=chatting, sampling=Sampling(max_new_tokens=4), system="be kind")
    talk.say("price?", on_text=print)
    talk.say("and pears?", on_text=print)
    assert asked[-1]["prompt_text"] == "be kind\nprice?\nsure\nand pears?"
    assert asked[-1]["prompt"].endswith("<s>user\nand pears?</s>\n<s>assistant\n")
    assert asked[-1]["rendered"] is True
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be kind"}]


def test_old_exchanges_are_forgotten_when_the_context_is_full(
    chatting: ComposedModel, asked: list[dict[str, Any]]
) -> None:
    talk = Conversation(model=chatting, sampling=Sampling(max_new_tokens=20), system="be kind")
    trimmed: list[int] = []
    for number in range(12):
        talk.say(f"question {number}: price of apples?", on_text=print, on_trimmed=trimmed.append)
    assert trimmed and set(trimmed) == {2}
    assert talk.messages[0] == {"role": "system", "content": "be kind"}
    assert [m["role"] for m in talk.messages[1:]] == ["user", "assistant"] * (len(talk.messages) // 2)
    assert "question 0" not in asked[-1]["prompt"] and "question 11" in asked[-1]["prompt"]


def test_a_message_that_fails_is_not_remembered(chatting: ComposedModel) -> None:
    talk = Conversation(model=chatting, sampling=Sampling(max_new_tokens=4))
    with pytest.raises(InputError, match="the anchor's context is"):
        talk.say("now " * 400, on_text=print)
    assert talk.messages == []


def test_without_a_template_each_message_is_a_prompt(answering: ComposedModel, asked: list[dict[str, Any]]) -> None:
    talk = Conversation(model=answering, sampling=Sampling(max_new_tokens=4))
    assert not talk.has_template
    talk.say("price?", on_text=print)
    talk.say("pears?", on_text=print)
    assert [(a["prompt"], a["prompt_text"], a["rendered"]) for a in asked] == [
        ("price?", "price?", False),
        ("pears?", "pears?", False),
    ]


def test_scales_change_answers_and_unknown_ones_are_named(chatting: ComposedModel) -> None:
    talk = Conversation(model=chatting, sampling=Sampling(max_new_tokens=8))
    before = talk.say("price?", on_text=lambda text: None).text
    talk.reset()
    talk.set_scale("same", 0.0)
    talk.set_scale("other.v1", 0.0)
    after = talk.say("price?", on_text=lambda text: None).text
    assert before != after
    with pytest.raises(InputError, match=r"augmenters?: got 'nobody'"):
        talk.set_scale("nobody", 1.0)
    assert talk.scales == {"same": 0.0, "other.v1": 0.0}
