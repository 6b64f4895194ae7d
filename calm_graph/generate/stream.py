"""Generate text for one prompt and hand each piece over as soon as it is final."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import TextStreamer

from calm_graph.errors import InputError
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import prompt_ids

Stopped = Literal["end", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: The most tokens of an answer; the anchor's context may leave room for fewer.
        temperature: 0 takes the likeliest token; higher is more random.
        top_p: Draw from the likeliest tokens that together have this probability, in 0..1.
        seed: Of the draw; None is different each time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name}: got {getattr(self, name)}, but {allowed} is allowed"
            for name, holds, allowed in (
                ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
                ("temperature", self.temperature >= 0, "0 or more"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            )
            if not holds
        ]
        if problems:
            raise InputError("; ".join(problems))

    def arguments(self) -> dict[str, Any]:
        """Return these choices as arguments of `generate`."""
        if self.temperature == 0:
            # What the anchor's own generation config says about sampling would only earn a warning.
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Args:
        text: Without special tokens.
        num_prompt_tokens: What the anchor read.
        num_new_tokens: What it wrote, the end token included.
        stopped: `end` of the answer, `length` (no more tokens were allowed) or `interrupted` by Ctrl-C.
        seconds: From the call to the last token.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    stopped: Stopped
    seconds: float


def stream_text(
    model: ComposedModel,
    prompt: str,
    *,
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] | None = None,
    prompt_text: str | None = None,
    rendered: bool = False,
) -> Generation:
    """Continue a prompt.

    Ctrl-C ends the answer, not the program: what was written until then is returned.

    Args:
        model: A composed model, in eval mode.
        prompt: What the anchor reads.
        sampling: How tokens are chosen; None takes the likeliest ones.
        on_text: Called with each piece of text; None hears nothing before the end.
        prompt_text: What the augmenters read; None is the prompt.
        rendered: Whether a chat template wrote the prompt, with its special tokens.

    Returns:
        The answer.

    Raises:
        InputError: The prompt is empty, or leaves no room in the anchor's context.
    """
    sampling = sampling or Sampling()
    ids = prompt_ids(model.tokenizer, prompt, rendered=rendered)
    if not prompt or not ids:
        raise InputError("prompt: got an empty text, but at least one token is needed")
    room = context_room(model, len(ids))
    if room < 1:
        raise InputError(f"prompt: got {len(ids)} tokens, but the anchor's context is {len(ids) + room}; shorten it")
    streamer = _Streamer(model.tokenizer, on_text)
    device = model.device
    began = time.perf_counter()
    stopped: Stopped | None = None
    with torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        try:
            model.generate(  # type: ignore[misc]
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
                prompt_texts=[prompt if prompt_text is None else prompt_text],
                max_new_tokens=min(sampling.max_new_tokens, room),
                streamer=streamer,
                pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id or 0,
                **sampling.arguments(),
            )
        except KeyboardInterrupt:
            streamer.end()  # type: ignore[no-untyped-call]
            stopped = "interrupted"
    if stopped is None:
        stopped = "length" if streamer.num_tokens >= min(sampling.max_new_tokens, room) else "end"
    return Generation(
        text="".join(streamer.pieces),
        num_prompt_tokens=len(ids),
        num_new_tokens=streamer.num_tokens,
        stopped=stopped,
        seconds=time.perf_counter() - began,
    )


def context_room(model: ComposedModel, num_tokens: int) -> int:
    """Return how many tokens fit into the anchor's context after `num_tokens` of them."""
    context = model.plan.anchor.card.context_length
    return context - num_tokens if context is not None else 2**31


class _Streamer(TextStreamer):
    """Collects the text, and hands it on, in whole words."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces: list[str] = []
        self.num_tokens = -1  # the prompt comes first, as one piece
        self._on_text = on_text

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token at a time."""
        self.num_tokens += 1
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take text that later tokens do not change."""
        if text:
            self.pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)
