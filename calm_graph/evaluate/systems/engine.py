"""A composition as a system: answers come from the engine, several at a time, and scores from whole forwards."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from calm_graph.data.samples import Batch
from calm_graph.errors import CalmGraphError, EvaluationError
from calm_graph.evaluate.systems.base import Decoding, Done
from calm_graph.evaluate.systems.scoring import (
    Score,
    TokenScorer,
    draw_seed,
    make_samples,
    score_all,
    scored_prompt_ids,
)
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.requests import GenerationRequest, TokenOutput
from calm_graph.generate.sampling import Sampling
from calm_graph.generate.selector import LearnedSelector, read_selector
from calm_graph.model.composed import ComposedModel
from calm_graph.train.chosen import chosen_scales
from registry.weights import identity as frozen_identity

_NAME = "composed"
_MAX_CACHE_TOKENS = 1 << 20
_PREFILL_TOKENS = 1024  # nobody waits for the next token, so long pieces of prompts are read at once


class EngineSystem(TokenScorer):
    """A composed model in this process.

    Args:
        model: In eval mode.
        name: What results call it.
        scales: Augmenter name -> factor on what it contributes; others keep the composition's.
        selector: As `read_selector` takes it: what chooses among the augmenters for each prompt.
        few_shot: Whether examples are put before prompts: not for a composition that was trained on the task.
        batch_size: Answers made at the same time, and rows scored at once.
    """

    def __init__(
        self,
        model: ComposedModel,
        *,
        name: str = _NAME,
        scales: Mapping[str, float] | None = None,
        selector: str | None = None,
        few_shot: bool = False,
        batch_size: int = 16,
    ) -> None:
        self.model, self.name, self.few_shot = model, name, few_shot
        self.scales, self.batch_size = dict(scales or {}), batch_size
        parts: dict[str, Any] = {"composition": composition_identity(model), "scales": sorted(self.scales.items())}
        self._selector = None
        if selector is not None:
            self._selector = read_selector(selector, model)
            is_file = isinstance(self._selector, LearnedSelector)
            parts["selector"] = hashlib.sha256(Path(selector).read_bytes()).hexdigest() if is_file else selector
        self.identity = json.dumps(parts)
        self._engine: Engine | None = None

    @classmethod
    def anchor(cls, model: ComposedModel, *, name: str = "anchor", batch_size: int = 16) -> EngineSystem:
        """Return the anchor of a composition alone: all augmenters are off, and none of them runs."""
        off = {edge.source: 0.0 for edge in model.plan.edges}
        return cls(model, name=name, scales=off, few_shot=True, batch_size=batch_size)

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        """Continue prompts, as many at a time as a batch has room for.

        Args:
            prompts: Texts.
            decoding: How.
            done: Hears of every prompt that is answered.

        Returns:
            For each prompt, its answers.

        Raises:
            EvaluationError: A prompt is too long.
        """
        engine = self._made_engine()
        texts = [[""] * decoding.num_samples for _ in prompts]
        open_answers = [decoding.num_samples] * len(prompts)
        # Long ones first: the last answers then have short prompts, and the batch is full for longer.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        waiting = deque(request for index in order for request in self._requests(index, prompts[index], decoding))
        try:
            while waiting or engine.has_work:
                while waiting and engine.refusal() is None:
                    engine.add(waiting.popleft())
                for id, output in engine.step():
                    index, first = map(int, id.split("/"))
                    if isinstance(output, Exception):
                        raise EvaluationError(f"{self.name}: prompts[{index}]: {output}") from output
                    assert isinstance(output, TokenOutput)
                    texts[index][first + output.choice] += output.text
                    if output.finish_reason is not None:
                        open_answers[index] -= 1
                        if open_answers[index] == 0:
                            done(index)
        except EvaluationError:
            raise
        except CalmGraphError as error:
            raise EvaluationError(f"{self.name}: {error}") from error
        finally:
            if engine.has_work:  # whoever stops in the middle leaves nothing behind
                engine.fail(EvaluationError("stopped"))
        return texts

    def score_tokens(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[Score]:
        """See `TokenScorer.score_tokens`."""
        model = self.model
        samples = make_samples(model.tokenizer, prompts, completions)

        def logits_of(batch: Batch) -> torch.Tensor:
            tensors = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            }
            scales = self.scales if self._selector is None else chosen_scales(self._selector, model, batch)
            with model.augmenters(scales):
                return cast(torch.Tensor, model(**tensors).logits)

        try:
            return score_all(
                samples,
                logits_of,
                vocab_size=model.config.get_text_config(decoder=True).vocab_size,
                pad_token_id=int(model.tokenizer.pad_token_id or model.tokenizer.eos_token_id or 0),
                done=done,
                batch_size=self.batch_size,
            )
        except CalmGraphError as error:
            raise EvaluationError(f"{self.name}: {error}") from error

    def _made_engine(self) -> Engine:
        if self._engine is None:
            settings = EngineSettings(
                max_running=self.batch_size,
                max_waiting=2 * self.batch_size,
                max_cache_tokens=_MAX_CACHE_TOKENS,
                prefill_tokens=_PREFILL_TOKENS,
                max_prefills=self.batch_size,
            )
            selectors = {} if self._selector is None else {_NAME: self._selector}
            self._engine = Engine({_NAME: self.model}, settings, selectors=selectors)
        return self._engine

    def _requests(self, index: int, prompt: str, decoding: Decoding) -> list[GenerationRequest]:
        """One request for as many answers as a batch takes; the id is the prompt's index and the first answer's."""
        ids = tuple(scored_prompt_ids(self.model.tokenizer, prompt))
        return [
            GenerationRequest(
                id=f"{index}/{first}",
                composition=_NAME,
                prompt_ids=ids,
                prompt_text=prompt or None,
                sampling=Sampling(
                    max_new_tokens=decoding.max_new_tokens,
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    seed=draw_seed(decoding.seed + first, prompt),
                    stop=decoding.stop,
                ),
                num_choices=min(self.batch_size, decoding.num_samples - first),
                scales=self.scales,
            )
            for first in range(0, decoding.num_samples, self.batch_size)
        ]


def composition_identity(model: ComposedModel) -> str:
    """Return the sha256 of all that a composed model's numbers come from: declaration, frozen models, attachments.

    Args:
        model: The model.

    Returns:
        `sha256:...`
    """
    digest = hashlib.sha256(model.plan.composition.model_dump_json().encode())
    for run in model.plan.runs:
        card = run.card.model_dump_json() if run.card.runtime != "torch" else ""
        digest.update(f"{run.name} {frozen_identity(run.card)} {card}\n".encode())
    for name, tensor in sorted(model.attachments.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(torch.uint8).numpy().data if values.ndim else repr(values.item()).encode())
    digest.update(str(model.anchor.dtype).encode())
    return f"sha256:{digest.hexdigest()}"
