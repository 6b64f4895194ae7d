"""The ways in which an anchor can read augmenters, and texts to read."""

from __future__ import annotations

from functools import cache

import torch

from calm_graph import Augmenter, Composition, every
from calm_graph.model.composed import ComposedModel
from tests.model.pico import Zoo

ATTACH = every(2)


def inner(*, reading: str = "stream", open_words: str = "wait") -> Augmenter:
    read = Augmenter("other", attach=ATTACH, open_words=open_words)
    composition = Composition(name="inner", anchor="same", augmenters=(read,))
    return Augmenter(composition, attach=ATTACH, reading=reading)


CASES: dict[str, tuple[Augmenter, ...]] = {
    "same": (Augmenter("same", attach=ATTACH),),
    "same-causal": (Augmenter("same", attach=ATTACH, prompt_visibility="causal"),),
    "same-prompt": (Augmenter("same", attach=ATTACH, reading="prompt"),),
    "same-prompt-causal": (Augmenter("same", attach=ATTACH, reading="prompt", prompt_visibility="causal"),),
    "same-template": (Augmenter("same", attach=ATTACH, prompt_template="Q: {prompt} A:"),),
    "other": (Augmenter("other", attach=ATTACH),),
    "open": (Augmenter("other", attach=ATTACH, open_words="read"),),
    "open-window": (Augmenter("window", attach=ATTACH, open_words="read", positions="distance"),),
    "open-nested": (
        Augmenter(inner(open_words="read").name, attach=ATTACH, open_words="read"),
        Augmenter("second", attach=ATTACH),
    ),
    "other-causal": (Augmenter("other", attach=ATTACH, prompt_visibility="causal"),),
    "other-prompt": (Augmenter("other", attach=ATTACH, reading="prompt"),),
    "other-prompt-causal": (Augmenter("other", attach=ATTACH, reading="prompt", prompt_visibility="causal"),),
    "other-template": (Augmenter("other", attach=ATTACH, reading="prompt", prompt_template="<s>Q: {prompt} A:"),),
    "encoder": (Augmenter("reader", attach=ATTACH, reading="prompt"),),
    "rotary": (
        Augmenter("same", attach=ATTACH, positions="rotary"),
        Augmenter("second", attach=ATTACH, positions="rotary"),
    ),
    "distance": (
        Augmenter("same", attach=ATTACH, positions="distance"),
        Augmenter("second", attach=ATTACH, positions="distance", prompt_visibility="causal"),
    ),
    "relative": (
        Augmenter("same", attach=ATTACH, writes="relative"),
        Augmenter("second", attach=ATTACH, writes="relative", gate="tanh", first_token="spare"),
    ),
    "no-norms": (Augmenter("same", attach=ATTACH, norms="none"), Augmenter("second", attach=ATTACH, norms="none")),
    "gate": (Augmenter("same", attach=ATTACH, gate="tanh"), Augmenter("second", attach=ATTACH, gate="tanh")),
    "nested": (inner(),),
    "nested-prompt": (inner(reading="prompt"),),
    "nested-checkpoint": (Augmenter("saved", attach=ATTACH),),
    "diamond": (Augmenter("other", attach=ATTACH, prompt_visibility="causal"), inner()),
    "window": (Augmenter("window", attach=ATTACH),),
    "alibi": (Augmenter("alibi", attach=ATTACH),),
    "mixed": (
        Augmenter("same", attach=ATTACH, scale=0.5),
        Augmenter("window", attach=ATTACH, prompt_visibility="causal", positions="rotary"),
        Augmenter("reader", attach=ATTACH, reading="prompt"),
    ),
}

PROMPTS = (
    "Hello",
    "The quick brown fox jumps over the lazy dog; now",
    "price of apples is 3 and price of",
)
COMPLETIONS = (
    " world, this is a small corpus. It has numbers!",
    " don't stop (really).\n\nNew line: ok? 😀 Köln",
    " pears is 14, 你好，世界 so 3 + 14 = 17 ภาษาไทย",
)


@cache
def compose(zoo: Zoo, case: str, *, anchor: str = "anchor") -> ComposedModel:
    """Return a trained model of a case; it is shared, so tests do not change it."""
    return zoo.compose(*CASES[case], anchor=anchor)


def encoded(model: ComposedModel, texts: tuple[str, ...], *, side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, padded on a side."""
    rows = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    width = max(map(len, rows))
    padded = [[0] * (width - len(row)) + row if side == "left" else row + [0] * (width - len(row)) for row in rows]
    real = [
        [0] * (width - len(row)) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * (width - len(row))
        for row in rows
    ]
    return torch.tensor(padded), torch.tensor(real)


def decoding_batch(model: ComposedModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return ids and mask of left-padded prompts with completions of one length, prompt lengths, width of prompts."""
    ids, mask = encoded(model, PROMPTS)
    completions = model.tokenizer(list(COMPLETIONS), add_special_tokens=False)["input_ids"]
    length = min(map(len, completions))
    later = torch.tensor([row[:length] for row in completions])
    return torch.cat([ids, later], 1), torch.cat([mask, torch.ones_like(later)], 1), mask.sum(1), ids.shape[1]


def off(model: ComposedModel) -> dict[str, float]:
    return {edge.source: 0.0 for edge in model.plan.into(model.plan.anchor.name)}
