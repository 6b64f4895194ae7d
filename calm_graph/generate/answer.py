"""One answer under way: how its next token is drawn, what becomes of it, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calm_graph.generate.requests import FinishReason, GenerationRequest, TokenLogprob, TokenOutput
from calm_graph.generate.sampler import Draw
from calm_graph.generate.text import AnswerText


@dataclass(slots=True)
class Answer:
    """One answer under way.

    Attributes:
        request: What was asked.
        choice: Which of its answers.
        seed: Of its draws.
        text: What becomes of its tokens.
        ids: Its tokens.
        limit: The most tokens it may have.
        end_ids: Tokens that end it.
        skipped: Augmenters that are left out of it, because their service does not answer.
    """

    request: GenerationRequest
    choice: int
    seed: int
    text: AnswerText
    ids: list[int]
    limit: int
    end_ids: frozenset[int]
    skipped: tuple[str, ...] = ()

    def draw(self) -> Draw:
        """What decides its next token."""
        sampling = self.request.sampling
        too_short = len(self.ids) < sampling.min_new_tokens
        return Draw(
            sampling=sampling,
            seed=self.seed,
            prompt_ids=self.request.prompt_ids,
            ids=self.ids,
            end_ids=self.end_ids if too_short else frozenset(),
        )

    def take(self, id: int, logprobs: tuple[TokenLogprob, ...], shares: Mapping[str, float] | None) -> TokenOutput:
        """Add a token and say what came of it."""
        self.ids.append(id)
        sampling = self.request.sampling
        finish: FinishReason | None = None
        reason: str | int | None = None
        if id in self.end_ids:
            finish, text = "stop", self.text.end()
            if id in sampling.stop_token_ids:
                reason = id
                text += self.text.push(id, may_stop=False).text if sampling.include_stop else ""
        else:
            piece = self.text.push(id, may_stop=len(self.ids) >= sampling.min_new_tokens)
            text = piece.text
            if piece.stop is not None:
                finish, reason = "stop", piece.stop
            elif len(self.ids) >= self.limit:
                finish, text = "length", text + self.text.end()
        return TokenOutput(
            choice=self.choice,
            token_id=id,
            text=text,
            logprobs=logprobs,
            contributions=shares,
            finish_reason=finish,
            stop_reason=reason,
            skipped_augmenters=self.skipped,
        )

    def end(self, text: str) -> TokenOutput:
        """End it without another token, as if its limit were reached."""
        return TokenOutput(
            choice=self.choice, token_id=None, text=text, finish_reason="length", skipped_augmenters=self.skipped
        )
