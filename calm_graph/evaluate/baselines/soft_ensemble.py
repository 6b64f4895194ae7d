"""Models that vote on every next token, or on every next word where their tokenizers differ."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from calm_graph.augmenters.taps import watch_head
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines.words import word_nats
from calm_graph.evaluate.systems.base import Decoding, Done, System
from calm_graph.evaluate.systems.plain import PlainSystem
from registry import ModelCard
from registry.fingerprint import tokenizer_fingerprint
from registry.weights import find_files

NAME = "soft_ensemble"


def soft_ensemble(
    cards: Sequence[ModelCard],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
) -> System:
    """Load models that answer together: the mean of their next-token distributions.

    Args:
        cards: Of the models, the anchor first.
        dtype: Of their weights; None keeps what the files hold.
        device: Where they run.
        batch_size: Prompts answered and rows scored at once.

    Returns:
        The system. Where the models have different tokenizers it scores word by word, and does not generate.

    Raises:
        EvaluationError: There are fewer than two models.
    """
    if len(cards) < 2:
        raise EvaluationError(f"{NAME}: got {len(cards)} models, but two or more are needed")
    members = [
        PlainSystem.of_card(card, name=card.name, dtype=dtype, device=device, batch_size=batch_size) for card in cards
    ]
    tokenizers = [tokenizer_fingerprint(find_files(card)) for card in cards]
    if None in tokenizers or len(set(tokenizers)) > 1:
        return WordEnsemble(members)
    return PlainSystem(
        TokenEnsemble([member.model for member in members]),
        members[0].tokenizer,
        name=NAME,
        identity=_identity("tokens", members),
        batch_size=batch_size,
    )


class TokenEnsemble(PreTrainedModel, GenerationMixin):
    """A causal language model whose next-token distribution is the mean of those of its members.

    Its logits are the logarithm of that mean. Vocabularies that are padded to different sizes are cut to the smallest.

    Args:
        members: Causal language models with one tokenizer, in eval mode.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    # How attention is computed is the members' business.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        super().__init__(copy.deepcopy(members[0].config))
        self.members = nn.ModuleList(members)
        self.models = tuple(members)
        self.generation_config = members[0].generation_config
        for member in members:
            watch_head(member.get_output_embeddings())
        self.vocab_size = min(int(m.config.get_text_config(decoder=True).vocab_size) for m in members)
        self.requires_grad_(False)
        self.train(False)

    def get_output_embeddings(self) -> nn.Module:
        """Return the first member's; the others' obey the same call."""
        head: nn.Module = self.models[0].get_output_embeddings()
        return head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run every member.

        Args:
            input_ids: int64 [B, T].
            attention_mask: int64 [B, past + T]; None: no padding.
            past_key_values: What earlier calls have left.
            use_cache: Not looked at; a cache that is given is used.
            kwargs: Further arguments, each for the members that take it.

        Returns:
            Logits float32 [B, T, V], normalised, and the cache.
        """
        caches = [None] * len(self.models) if past_key_values is None else [past_key_values, *past_key_values.others]
        total: torch.Tensor | None = None
        for member, cache in zip(self.models, caches, strict=True):
            takes = inspect.signature(member.forward).parameters
            output = member(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=cache is not None,
                **{name: value for name, value in kwargs.items() if name in takes},
            )
            logs = output.logits.float().log_softmax(dim=-1)[..., : self.vocab_size]
            total = logs if total is None else torch.logaddexp(total, logs)
        assert total is not None
        return CausalLMOutputWithPast(
            logits=total - math.log(len(self.models)),
            past_key_values=past_key_values,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        prepared = super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )
        model_kwargs["past_key_values"] = EnsembleCache([member.config for member in self.models])
        return prepared


class EnsembleCache(DynamicCache):
    """The first member's keys and values, with those of the others beside them.

    Args:
        configs: The members'.
    """

    def __init__(self, configs: Sequence[Any]) -> None:
        super().__init__(config=configs[0])
        self.others = [DynamicCache(config=config) for config in configs[1:]]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the old row `beam_idx[i]`."""
        super().reorder_cache(beam_idx)
        for other in self.others:
            other.reorder_cache(beam_idx)


class WordEnsemble:
    """Models with different tokenizers: the mean of the probabilities that they give to each next word.

    Args:
        members: The models, each with its own tokenizer.
    """

    few_shot = True

    def __init__(self, members: Sequence[PlainSystem]) -> None:
        self.members = tuple(members)
        self.name = NAME
        self.identity = _identity("words", members)

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        """Refuse.

        Args:
            prompts: Texts.
            decoding: How.
            done: Not called.

        Raises:
            EvaluationError: Always.
        """
        raise EvaluationError(
            f"{self.name}: {' and '.join(member.name for member in self.members)} have different tokenizers, so there "
            "is no next token to take the mean of; only scores (bits_per_byte, perplexity) can be had"
        )

    def score(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[float]:
        """Tell how likely completions are: -log of the product, over words, of the mean of the members' probabilities.

        Args:
            prompts: Texts.
            completions: What follows each.
            done: Hears of every completion that is scored.

        Returns:
            Nats of each.
        """
        by_member = [word_nats(member, prompts, completions) for member in self.members]
        nats = []
        for index, words in enumerate(zip(*by_member, strict=True)):
            logs_MW = -torch.stack(words)
            nats.append(-float((logs_MW.logsumexp(dim=0) - math.log(len(self.members))).sum()))
            done(index)
        return nats


def _identity(kind: str, members: Sequence[PlainSystem]) -> str:
    return json.dumps({NAME: kind, "members": [member.identity for member in members]})
