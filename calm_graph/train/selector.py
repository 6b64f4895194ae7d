"""Selectors over rows: which augmenters each row of a batch has, and a gate learned from what augmenters are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.order import split
from calm_graph.data.samples import Batch, Dataset
from calm_graph.data.sources import Rows
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError
from calm_graph.generate.selector import LearnedSelector, Prompt, Selector, chosen, mean_state
from calm_graph.model.composed import ComposedModel
from calm_graph.model.losses import supervised_positions
from calm_graph.model.prompts import nonempty_prompt_ids
from calm_graph.states.progress import Show, progress

_HELD_OUT = 5
"""Every fifth row tells how well a gate decides that was fitted on the others."""


def chosen_scales(selector: Selector, model: ComposedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Choose the augmenters of each row of a batch, as an engine would for its prompt.

    Args:
        selector: What chooses.
        model: The composition.
        batch: B rows.

    Returns:
        For each augmenter that the anchor reads, its factor in each row, float [B]: 0 where it is not chosen.

    Raises:
        InputError: It chooses something else.
    """
    edges = {edge.source: edge.scale for edge in model.plan.into(model.plan.anchor.name)}
    of_rows = [
        chosen(selector, Prompt(text=text, ids=tuple(ids), augmenters=tuple(edges)))
        for text, ids in zip(batch["prompt_texts"], _prompts(model, batch), strict=True)
    ]
    return {name: torch.tensor([scale if name in row else 0.0 for row in of_rows]) for name, scale in edges.items()}


@dataclass(frozen=True, slots=True)
class Decided:
    """How a gate decides about one augmenter over rows that it was not fitted on.

    Args:
        num_rows: How many.
        needed: Of how many of them the augmenter makes the completion likelier.
        chosen: For how many it is chosen.
        right: How many of these decisions agree.
    """

    num_rows: int
    needed: int
    chosen: int
    right: int


@dataclass(frozen=True, slots=True)
class FittedSelector:
    """A gate, and how well its like decides.

    Args:
        selector: Fitted on all rows.
        decided: Augmenter -> how one that was fitted on four fifths of the rows decides on the others; empty where
            there are fewer than five.
    """

    selector: LearnedSelector
    decided: dict[str, Decided]


def fit_selector(
    model: ComposedModel,
    *,
    data: Rows,
    keep: Rows | None = None,
    columns: Columns | None = None,
    layer: int | None = None,
    min_gain: float = 0.01,
    threshold: float = 0.5,
    decay: float = 1e-2,
    max_length: int | None = None,
    long_rows: LongRows = "error",
    batch_size: int = 8,
    show: Show = "none",
) -> FittedSelector:
    """Learn from rows which augmenters a prompt needs.

    A row needs an augmenter if its completion is likelier with all augmenters than with all but it.

    Args:
        model: A trained composition.
        data: Rows, as `fit` takes them.
        keep: Rows, likewise, of what the anchor should do alone: they need none.
        columns: As in `fit`.
        layer: The anchor's block whose states are looked at; None is a quarter of the way up.
        min_gain: How much likelier, in nats per token of the completion.
        threshold: Of the selector; lower runs augmenters more often.
        decay: Of the weights' squares.
        max_length: The most tokens of a row; None: the anchor's context.
        long_rows: What happens to longer ones.
        batch_size: Rows run at once.
        show: How progress is shown.

    Returns:
        The gate.

    Raises:
        InputError: Rows are wrong or too long, or a number is out of range.
    """
    num_layers = model.plan.anchor.num_layers
    layer = num_layers // 4 if layer is None else layer
    if not 0 <= layer < num_layers:
        raise InputError(f"layer: got {layer}, but the anchor has 0..{num_layers - 1}")
    if not 0 < threshold < 1:
        raise InputError(f"threshold: got {threshold}, but a probability between 0 and 1 is needed")
    limit = model.plan.anchor.card.context_length if max_length is None else max_length
    parts = [
        load_dataset(rows, model.tokenizer, max_length=limit, long_rows=long_rows, columns=columns, show=show)
        for rows in (data, keep)
        if rows is not None
    ]
    names = list(dict.fromkeys(edge.source for edge in model.plan.into(model.plan.anchor.name)))
    needed = [_needed(model, parts[0], names, min_gain=min_gain, batch_size=batch_size, show=show)]
    needed += [torch.zeros(len(part), len(names)) for part in parts[1:]]
    needed_RA = torch.cat(needed)
    states_RD = torch.cat([_states(model, part, layer=layer, show=show) for part in parts])

    def fitted(rows: torch.Tensor) -> LearnedSelector:
        weights_AD, biases_A = _fit(states_RD[rows], needed_RA[rows], decay=decay)
        return LearnedSelector(
            model, layer=layer, names=names, weights_AD=weights_AD, biases_A=biases_A, threshold=threshold
        )

    order = torch.randperm(len(states_RD), generator=torch.Generator().manual_seed(0))
    held_out, others = order[::_HELD_OUT], torch.tensor([row for place, row in enumerate(order) if place % _HELD_OUT])
    decided = {}
    if len(order) >= _HELD_OUT:
        chosen_RA = fitted(others).likely(states_RD[held_out]) >= threshold
        needs_RA = needed_RA[held_out].bool()
        for place, name in enumerate(names):
            chosen_R, needs_R = chosen_RA[:, place], needs_RA[:, place]
            decided[name] = Decided(
                len(held_out), int(needs_R.sum()), int(chosen_R.sum()), int((chosen_R == needs_R).sum())
            )
    return FittedSelector(fitted(order), decided)


def _needed(
    model: ComposedModel, dataset: Dataset, names: Sequence[str], *, min_gain: float, batch_size: int, show: Show
) -> torch.Tensor:
    """Tell whom each row needs: float [R, A] of 0 and 1."""
    needed_RA = torch.zeros(len(dataset), len(names))
    order = np.argsort(dataset.lengths, kind="stable")[::-1]
    with progress(show, done=0, total=len(dataset), label="what augmenters are worth") as advance:
        for rows in split(order, dataset.lengths, batch_size=batch_size):
            batch = dataset.batch(rows.tolist())
            all_B = _nats_per_token(model, batch, {})
            for place, name in enumerate(names):
                gain_B = _nats_per_token(model, batch, {name: 0.0}) - all_B
                needed_RA[torch.from_numpy(rows.copy()), place] = (gain_B > min_gain).float()
            advance(len(rows))
    return needed_RA


@torch.no_grad()
def _nats_per_token(model: ComposedModel, batch: Batch, scales: Mapping[str, float]) -> torch.Tensor:
    """Return the mean surprise of each row's completion, float [B], on the CPU."""
    tensors: dict[str, Any] = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    with model.augmenters(scales):
        logits_KV = model(**tensors).logits
    labels = tensors["labels"]
    rows_K, columns_K = supervised_positions(labels)
    nats_K = F.cross_entropy(logits_KV.float(), labels[rows_K, columns_K + 1], reduction="none")
    nats_B = torch.zeros(len(labels), device=nats_K.device).index_add_(0, rows_K, nats_K)
    return (nats_B / torch.bincount(rows_K, minlength=len(labels))).cpu()


def _states(model: ComposedModel, dataset: Dataset, *, layer: int, show: Show) -> torch.Tensor:
    """Return what a gate sees of each row's prompt, float [R, D]."""
    found = []
    with progress(show, done=0, total=len(dataset), label="states of prompts") as advance:
        for row in range(len(dataset)):
            (ids,) = _prompts(model, dataset.batch([row]))
            found.append(mean_state(model, ids, layer=layer))
            advance(1)
    return torch.stack(found)


def _prompts(model: ComposedModel, batch: Batch) -> list[list[int]]:
    """Return the ids of each row's prompt as an engine reads it: never empty."""
    lengths: list[int] = batch["prompt_lengths"].tolist()
    return [
        ids[:length].tolist() if length else nonempty_prompt_ids(model.tokenizer, "")
        for ids, length in zip(batch["input_ids"], lengths, strict=True)
    ]


def _fit(states_RD: torch.Tensor, needed_RA: torch.Tensor, *, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights [A, D] and biases [A] of a logistic regression for each augmenter."""
    # Centred and scaled while fitting, and undone in the weights, so that one step size suits every anchor.
    mean_D, scale_D = states_RD.mean(dim=0), states_RD.std(dim=0, correction=0) + 1e-6
    inputs_RD = (states_RD - mean_D) / scale_D
    weights_AD = torch.zeros(needed_RA.shape[1], states_RD.shape[1], requires_grad=True)
    biases_A = torch.zeros(needed_RA.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_AD, biases_A], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits_RA = inputs_RD @ weights_AD.T + biases_A
        loss = F.binary_cross_entropy_with_logits(logits_RA, needed_RA) + decay * weights_AD.square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    scaled_AD = weights_AD.detach() / scale_D
    return scaled_AD, biases_A.detach() - scaled_AD @ mean_D
