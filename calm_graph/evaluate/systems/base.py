"""What can be evaluated: anything that continues prompts and tells how likely a continuation is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Done = Callable[[int], None]
"""Called with the index of a prompt that is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are made; by default the likeliest token, each time.

    Args:
        max_new_tokens: The most of an answer, in the system's own tokens.
        stop: Texts that end an answer, and are not part of it.
        num_samples: Answers to each prompt.
        temperature: 0 is greedy decoding.
        top_p: Share of the probability that is drawn from.
        seed: Of the draws.
    """

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class System(Protocol):
    """A model, or several together, as evaluation sees it."""

    @property
    def name(self) -> str:
        """What results call it: `anchor`, `augmenter`, `composed`, `lora`, ..."""

    @property
    def identity(self) -> str:
        """What its answers depend on, as a short text; results of one identity are not computed twice."""

    @property
    def few_shot(self) -> bool:
        """Whether examples are put before the prompt: for systems that were not trained on the task."""

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        """Continue prompts.

        Args:
            prompts: Texts.
            decoding: How.
            done: Hears of every prompt that is answered.

        Returns:
            For each prompt, its answers: the new text only.

        Raises:
            EvaluationError: The system cannot generate (only score), or a prompt is too long for it.
        """

    def score(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[float]:
        """Tell how likely completions are.

        Args:
            prompts: Texts.
            completions: What follows each; the end of the text is not part of it.
            done: Hears of every completion that is scored.

        Returns:
            For each completion the negative log-likelihood of its tokens, in nats.

        Raises:
            EvaluationError: The system cannot score, or a text is too long for it.
        """
