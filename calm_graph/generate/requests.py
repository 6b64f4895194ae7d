"""What an engine is asked and what it answers, piece by piece; plain values that cross processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from calm_graph.generate.sampling import Sampling

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt to go on from.

    Args:
        id: Unlike that of any other request under way.
        composition: Name of the composition that answers; the anchor's name asks the anchor alone.
        prompt_ids: What the anchor reads, special tokens included.
        prompt_text: What augmenters read; None is the text of `prompt_ids`.
        sampling: How tokens are chosen.
        num_choices: So many answers, drawn independently.
        scales: Augmenter name -> factor on what it contributes; 0 does not run it. Others keep the composition's.
        contributions: Whether each token tells how much each augmenter wrote into it.
        resume_ids: Answer so far, of an engine that was lost; the answer goes on as if it had been made here. With one
            choice only.
    """

    id: str
    composition: str
    prompt_ids: tuple[int, ...]
    prompt_text: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    num_choices: int = 1
    scales: Mapping[str, float] = field(default_factory=dict)
    contributions: bool = False
    resume_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token's log-probability, before penalties and temperature."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOutput:
    """What was asked about the prompt; comes before the first token.

    Args:
        logprobs: For each token of the prompt, itself and then the likeliest ones; None for the first, which nothing
            precedes.
        skipped_augmenters: As of `TokenOutput`.
    """

    logprobs: tuple[tuple[TokenLogprob, ...] | None, ...]
    skipped_augmenters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutput:
    """One new token of one answer.

    Args:
        choice: Which answer, from 0.
        token_id: The token; None if the answer ended without another one.
        text: Text that is final now: nothing while a character is not whole or a stop text may have begun.
        logprobs: The token and then the likeliest ones, if asked for.
        contributions: Augmenter -> length of what it wrote into the anchor's stream at this token, over the stream's
            own (mean over its attachments), if asked for.
        finish_reason: Why the answer ended with this token; None goes on.
        stop_reason: The stop text or token that ended it.
        skipped_augmenters: Those that the answer is made without, because their service does not answer.
    """

    choice: int
    token_id: int | None
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    contributions: Mapping[str, float] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    skipped_augmenters: tuple[str, ...] = ()


Output = PromptOutput | TokenOutput

Result = tuple[str, Output | Exception]
"""A request's id, and an output of it or the reason why it ends."""
