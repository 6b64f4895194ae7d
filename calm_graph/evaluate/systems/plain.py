"""Any causal language model of transformers as a system, with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from calm_graph.augmenters.taps import BlockCall, during, watch_head
from calm_graph.data.samples import Batch
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.systems.base import Decoding, Done
from calm_graph.evaluate.systems.scoring import (
    Score,
    TokenScorer,
    draw_seed,
    make_samples,
    score_all,
    scored_prompt_ids,
    supervised_positions,
)
from calm_graph.generate.text import AnswerText
from calm_graph.model.token_bytes import TokenBytes
from registry.weights import identity as frozen_identity
from registry.weights import load_causal_lm, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from registry import ModelCard


class PlainSystem(TokenScorer):
    """A causal language model in this process.

    Args:
        model: In eval mode.
        tokenizer: Its own.
        name: What results call it.
        identity: What its answers depend on.
        few_shot: Whether examples are put before prompts: for models that were not trained on the task.
        batch_size: Prompts answered and rows scored at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        identity: str,
        few_shot: bool = True,
        batch_size: int = 16,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name, self.identity, self.few_shot = name, identity, few_shot
        self.batch_size = batch_size
        self._head: torch.nn.Module = model.get_output_embeddings()
        watch_head(self._head)
        self._bytes: TokenBytes | None = None

    @classmethod
    def of_card(
        cls,
        card: ModelCard,
        *,
        name: str,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> PlainSystem:
        """Load a model of the registry.

        Args:
            card: Of a causal language model.
            name: What results call it.
            dtype: Of its weights; None keeps what the files hold.
            device: Where it runs.
            batch_size: Prompts answered and rows scored at once.

        Returns:
            The system.
        """
        model = cast(Any, load_causal_lm(card, dtype=dtype)).to(device)
        identity = f"{frozen_identity(card)} {model.dtype}"
        return cls(model, load_tokenizer(card), name=name, identity=identity, batch_size=batch_size)

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        """Continue prompts in batches of similar lengths, padded on the left.

        Args:
            prompts: Texts.
            decoding: How.
            done: Hears of every prompt that is answered.

        Returns:
            For each prompt, its answers.
        """
        ids = [scored_prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: len(ids[index]), reverse=True)
        texts: list[list[str]] = [[] for _ in prompts]
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            answers = self._generate([ids[index] for index in batch], decoding, seed_of=prompts[batch[0]])
            for place, index in enumerate(batch):
                texts[index] = answers[place * decoding.num_samples : (place + 1) * decoding.num_samples]
                done(index)
        return texts

    def score_tokens(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[Score]:
        """See `TokenScorer.score_tokens`."""
        samples = make_samples(self.tokenizer, prompts, completions)
        for index, sample in enumerate(samples):
            if len(sample.input_ids) > self.context_length:
                raise EvaluationError(
                    f"{self.name}: prompts[{index}]: {len(sample.input_ids)} tokens with the completion, but its "
                    f"context is {self.context_length}; use fewer examples or shorter rows"
                )
        return score_all(
            samples,
            self.logits,
            vocab_size=self.vocab_size,
            pad_token_id=self.pad_token_id,
            done=done,
            batch_size=self.batch_size,
        )

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        found = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(found) if found else 2**31

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def pad_token_id(self) -> int:
        """What fills rows; never seen."""
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Run a batch: logits float [1, K, V] of the K positions that predict a label, row by row."""
        device = self.model.device
        labels = batch["labels"].to(device)
        # The head sees only what is scored: logits of whole prompts would be gigabytes for a large vocabulary.
        with during(BlockCall(positions=supervised_positions(labels))):
            output = self.model(
                input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device).long()
            )
        return cast(torch.Tensor, output.logits)

    def _generate(self, rows: Sequence[Sequence[int]], decoding: Decoding, *, seed_of: str) -> list[str]:
        width = max(map(len, rows))
        room = self.context_length - width
        if room < 1:
            raise EvaluationError(
                f"{self.name}: a prompt has {width} tokens, but its context is {self.context_length}; use fewer "
                "examples or shorter rows"
            )
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        if self._bytes is None:
            self._bytes = TokenBytes(self.tokenizer)
        collected = _Collected(
            [AnswerText(self._bytes, stop=decoding.stop) for _ in range(len(rows) * decoding.num_samples)],
            self._end_ids(),
        )
        draws = decoding.temperature > 0
        # Every value is given: what is not is taken from the model's own settings, such as Gemma's top_k.
        config = GenerationConfig(
            max_new_tokens=min(decoding.max_new_tokens, room),
            num_return_sequences=decoding.num_samples,
            do_sample=draws,
            temperature=decoding.temperature if draws else 1.0,
            top_p=decoding.top_p if draws else 1.0,
            top_k=0 if draws else 50,
            repetition_penalty=1.0,
            num_beams=1,
            eos_token_id=sorted(self._end_ids()) or None,
            pad_token_id=pad,
        )
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(draw_seed(decoding.seed, seed_of))
            cast(Any, self.model).generate(
                input_ids=input_ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([collected]),
            )
        return collected.ended()

    def _end_ids(self) -> frozenset[int]:
        settings: Any = self.model.generation_config
        found = getattr(settings, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if found is None else found
        if found is None:
            return frozenset()
        return frozenset([found] if isinstance(found, int) else cast(list[int], found))


class _Collected(StoppingCriteria):
    """Turns new tokens into text as they come, and ends the rows in which a stop text was found."""

    def __init__(self, answers: Sequence[AnswerText], end_ids: frozenset[int]) -> None:
        self._answers, self._end_ids = answers, end_ids
        self._texts = [""] * len(answers)
        self._is_done = [False] * len(answers)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, id in enumerate(input_ids[:, -1].tolist()):
            if self._is_done[row]:
                continue
            if id in self._end_ids:
                self._end(row)
                continue
            piece = self._answers[row].push(id)
            self._texts[row] += piece.text
            self._is_done[row] = piece.stop is not None
        return torch.tensor(self._is_done, device=input_ids.device)

    def ended(self) -> list[str]:
        """Return the texts, with what was held back in case a stop text had begun."""
        for row, is_done in enumerate(self._is_done):
            if not is_done:
                self._end(row)
        return self._texts

    def _end(self, row: int) -> None:
        self._texts[row] += self._answers[row].end()
        self._is_done[row] = True
