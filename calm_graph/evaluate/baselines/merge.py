"""One model made of two by arithmetic on their weights (task arithmetic, arXiv 2212.04089), where they fit."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from calm_graph.errors import EvaluationError
from registry import ModelCard
from registry.fingerprint import tokenizer_fingerprint
from registry.weights import find_files, load_causal_lm, load_config

_MAX_SHOWN = 3


def merge(
    anchor: ModelCard,
    augmenter: ModelCard,
    *,
    base: ModelCard | None = None,
    alpha: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Make anchor + alpha * (augmenter - base); without a base, (1 - alpha) * anchor + alpha * augmenter.

    Args:
        anchor: The model that is changed.
        augmenter: What is put into it.
        base: What the augmenter was trained from; None merges the two models linearly.
        alpha: How much; 0 is the anchor.
        dtype: Of the result.

    Returns:
        The merged model, frozen and in eval mode.

    Raises:
        EvaluationError: The models have other tensors, shapes or tokenizers.
    """
    others = [card for card in (augmenter, base) if card is not None]
    for card in others:
        check_same_tensors(anchor, card)
    merged = load_causal_lm(anchor, dtype=dtype)
    added = dict(load_causal_lm(augmenter, dtype=dtype).named_parameters())
    # With nothing named, the anchor is its own base: anchor + alpha * (augmenter - anchor).
    removed = dict(merged.named_parameters() if base is None else load_causal_lm(base, dtype=dtype).named_parameters())
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            parameter.add_(added[name] - removed[name], alpha=alpha)
    return merged


def check_same_tensors(anchor: ModelCard, other: ModelCard) -> None:
    """Refuse to merge models whose tensors do not stand for the same things; nothing is loaded.

    Args:
        anchor: The model that is changed.
        other: What is added to it.

    Raises:
        EvaluationError: Tensors, shapes or tokenizers differ; the first tensors that do are named.
    """
    ours, theirs = _shapes(anchor), _shapes(other)
    problems = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            problems.append(f"{name}: {_shown(ours.get(name))} and {_shown(theirs.get(name))}")
    where = f"{anchor.name!r} and {other.name!r}"
    if problems:
        more = f" and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
        raise EvaluationError(
            f"{where} have different tensors ({'; '.join(problems[:_MAX_SHOWN])}{more}); only models of one "
            "architecture and size can be merged"
        )
    tokenizers = [tokenizer_fingerprint(find_files(card)) for card in (anchor, other)]
    if tokenizers[0] != tokenizers[1]:
        raise EvaluationError(
            f"{where} have the same shapes but different tokenizers, so the rows of their embeddings are not those of "
            "the same tokens; merge models with one tokenizer"
        )


def _shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(card))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else "x".join(map(str, shape))
