"""What `generate` needs to know of a composed model: its cache, its sealed prompt, and inputs that are not tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from calm_graph.errors import InputError
from calm_graph.model.cache import ComposedCache

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from calm_graph.model.augmenter_graph import AugmenterGraph
    from calm_graph.model.tokens import AnchorTokens


class ComposedGeneration:
    """Overrides of transformers' `GenerationMixin`, before which it stands in the bases.

    It does not inherit from it: transformers declares these methods for a `self` of its own protocol.
    """

    if TYPE_CHECKING:
        graph: AugmenterGraph
        new_cache: Callable[[], ComposedCache]
        anchor_tokens: Callable[[torch.Tensor, torch.Tensor | None], AnchorTokens]

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation: got {generation_config.cache_implementation!r}, but a composed model keeps "
                "augmenter states of growing length; leave it out"
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, DynamicCache) and not isinstance(cache, ComposedCache):
            if getattr(cache, "_is_user_defined", False):
                raise InputError("past_key_values: got a DynamicCache; use model.new_cache()")
            model_kwargs["past_key_values"] = self.new_cache()

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **model_kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        if expand_size > 1:  # transformers repeats tensors only
            texts, inputs = model_kwargs.get("prompt_texts"), model_kwargs.get("augmenter_inputs")
            if texts is not None:
                model_kwargs["prompt_texts"] = [text for text in texts for _ in range(expand_size)]
            if inputs is not None:
                model_kwargs["augmenter_inputs"] = {
                    name: {key: value.repeat_interleave(expand_size, dim=0) for key, value in given.items()}
                    for name, given in inputs.items()
                }
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, *args, **model_kwargs
        )
        if model_kwargs.get("prompt_lengths") is None:
            # All that is given to `generate` is the prompt. Said here, because every decoding mode passes by.
            mask = model_kwargs.get("attention_mask")
            real_BT = torch.ones_like(input_ids) if mask is None else mask
            model_kwargs["prompt_lengths"] = real_BT.sum(dim=1)
        return input_ids, model_kwargs

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, ComposedCache) and cache.request.prompt_lengths_B is None:
            # A chunked prefill shows `forward` only the first part of the prompt, so it is read whole before.
            self.graph.begin(
                cache.request,
                self.anchor_tokens(input_ids, model_kwargs.get("attention_mask")),
                prompt_lengths=model_kwargs["prompt_lengths"],
                prompt_texts=model_kwargs.get("prompt_texts"),
                inputs=model_kwargs.get("augmenter_inputs") or {},
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
