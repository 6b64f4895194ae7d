"""How the next token of a request is chosen: what its user may set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from calm_graph.errors import InputError

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when an answer ends. Names and meanings are those of OpenAI's and vLLM's servers.

    Args:
        max_new_tokens: The most tokens of an answer; the anchor's context may leave room for fewer. 0 only reads the
            prompt, for its log-probabilities.
        min_new_tokens: Before so many tokens, nothing but the limit ends the answer.
        temperature: 0 takes the likeliest token; higher is more random.
        top_p: Draw from the likeliest tokens that together have this probability, in 0..1.
        top_k: Draw from so many of the likeliest tokens; 0 is all.
        min_p: Draw from the tokens at least this times as likely as the likeliest, in 0..1.
        repetition_penalty: Divide positive logits of tokens in the prompt or the answer by this, and multiply
            negative ones.
        presence_penalty: Subtract from the logits of tokens that stand in the answer, -2..2.
        frequency_penalty: Subtract from them for each time they stand there, -2..2.
        logit_bias: Token id -> what is added to its logit, -100..100.
        seed: Of the draw; the same seed and prompt give the same answer, whatever else is being answered. None is
            different each time.
        stop: The answer ends before any of these texts.
        stop_token_ids: The answer ends at any of these tokens, and at the anchor's end tokens.
        ignore_eos: Go on after the anchor's end tokens.
        include_stop: Whether the text that ended the answer is part of it.
        logprobs: Give the log-probability of each token and of so many likeliest ones, 0..20; None gives none.
        prompt_logprobs: The same of the prompt's tokens. No augmenter shows a word of the prompt before the anchor has
            read it, whatever the composition says; the answer is made as if nothing had been asked of the prompt.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        top = f"0..{MAX_TOP_LOGPROBS}"
        problems = [
            f"{name}: got {getattr(self, name)}, but {allowed} is allowed"
            for name, holds, allowed in (
                ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
                ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "0..max_new_tokens"),
                ("temperature", 0 <= self.temperature <= 100, "0..100"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("top_k", self.top_k >= 0, "0 or more"),
                ("min_p", 0 <= self.min_p <= 1, "0..1"),
                ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0 and at most 100"),
                ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2..2"),
                ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2..2"),
                ("logit_bias", all(-100 <= bias <= 100 for bias in self.logit_bias.values()), "-100..100 for each"),
                ("stop", all(self.stop), "texts that are not empty"),
                ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS, top),
                (
                    "prompt_logprobs",
                    self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_TOP_LOGPROBS,
                    top,
                ),
            )
            if not holds  # a number that is none compares false, so it is refused too
        ]
        if problems:
            raise InputError("; ".join(problems))
