"""A gate learned from rows: it tells from a prompt which augmenters are worth running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from calm_graph.data.sources import Rows
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError
from calm_graph.generate.selector import LearnedSelector, mean_state
from calm_graph.model.composed import ComposedModel
from calm_graph.progress import Show, progress
from calm_graph.train.chosen import row_prompts
from calm_graph.train.worth import gains

_HELD_OUT = 5
"""Every fifth row tells how well a gate decides that was fitted on the others."""


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
    needed_RA = torch.zeros(sum(map(len, parts)), len(names))
    needed_RA[: len(parts[0])] = (gains(model, parts[0], names, batch_size=batch_size, show=show) > min_gain).float()
    states_RD = torch.cat([_states(model, part, layer=layer, show=show) for part in parts])

    def fitted(rows_R: torch.Tensor) -> LearnedSelector:
        weights_AD, biases_A = _fit(states_RD[rows_R], needed_RA[rows_R], decay=decay)
        return LearnedSelector(
            model, layer=layer, names=names, weights_AD=weights_AD, biases_A=biases_A, threshold=threshold
        )

    order_R = torch.randperm(len(states_RD), generator=torch.Generator().manual_seed(0))
    is_held_out_R = torch.arange(len(order_R)) % _HELD_OUT == 0
    decided = {}
    if len(order_R) >= _HELD_OUT:
        held_out_R = order_R[is_held_out_R]
        likely_RA = fitted(order_R[~is_held_out_R]).likely(states_RD[held_out_R])
        decided = _decided(names, likely_RA >= threshold, needed_RA[held_out_R].bool())
    return FittedSelector(fitted(order_R), decided)


def _decided(names: Sequence[str], chosen_RA: torch.Tensor, needed_RA: torch.Tensor) -> dict[str, Decided]:
    """Count, for each augmenter, what a gate chose against what was needed: bool [R, A] both."""
    return {
        name: Decided(len(chosen_R), int(needed_R.sum()), int(chosen_R.sum()), int((chosen_R == needed_R).sum()))
        for name, chosen_R, needed_R in zip(names, chosen_RA.T, needed_RA.T, strict=True)
    }


def _states(model: ComposedModel, dataset: Dataset, *, layer: int, show: Show) -> torch.Tensor:
    """Return what a gate sees of each row's prompt, float [R, D]."""
    found = []
    with progress(show, label="states of prompts", total=len(dataset)) as advance:
        for row in range(len(dataset)):
            (ids,) = row_prompts(model, dataset.batch([row]))
            found.append(mean_state(model, ids, layer=layer))
            advance(1)
    return torch.stack(found)


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
