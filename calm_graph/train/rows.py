"""What a run is trained on: rows of every kind as one data set, with the states that are cached for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Dataset
from calm_graph.data.sources import Rows
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import InputError, TrainingError
from calm_graph.plan.parts import Plan
from calm_graph.progress import Show
from calm_graph.states.store import StateStore


def check_settings(plan: Plan, settings: TrainSettings, *, evaluates: bool, keeps: bool) -> None:
    """Refuse settings that do not fit the kinds of rows.

    Args:
        plan: Of the composition.
        settings: Of the run.
        evaluates: Whether there are held-out rows.
        keeps: Whether there are rows to keep.

    Raises:
        TrainingError: They do not.
    """
    if settings.patience is not None and not evaluates:
        raise TrainingError(f"patience is {settings.patience}, but without eval_data nothing is evaluated")
    layer = settings.told_layer
    if layer is not None and layer not in (allowed := plan.told_layers):
        raise TrainingError(
            f"settings.told_layer: got {layer}, but allowed are {allowed[0]}..{allowed[-1]}: states are compared "
            f"after the last attachment, at layer {allowed[0]}"
        )
    if keeps and (layer is not None or settings.sharding != "none"):
        raise TrainingError("keep: rows are kept where answers are trained (no told_layer) and with sharding='none'")


def load_rows(
    data: Rows,
    eval_data: Rows | None,
    keep: Rows | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    settings: TrainSettings,
    columns: Columns | None,
    store: StateStore | None,
    show: Show,
) -> tuple[Dataset, Dataset | None]:
    """Tokenise the rows of a run.

    Args:
        data: To train on.
        eval_data: Held out, or None.
        keep: To keep, or None: they are trained on together with `data`.
        tokenizer: The anchor's.
        plan: Of the composition.
        settings: Of the run.
        columns: As in `fit`.
        store: Cached states of all of them; None: augmenters run.
        show: As in `fit`.

    Returns:
        What is trained on, and what is held out.

    Raises:
        InputError: Rows are wrong or too long, or those to keep have other inputs than the others.
        TrainingError: `max_length` is beyond the anchor's context.
        StatesError: Rows have no states in the store.
    """
    limit = longest_sample(plan, settings)

    def load(rows: Rows, *, told: bool = False) -> Dataset:
        found = load_dataset(
            rows,
            tokenizer,
            max_length=limit,
            long_rows=settings.long_rows,
            columns=columns,
            told=told,
            show=show,
        )
        return found if store is None else store.join(found, rows)

    dataset = load(data, told=settings.told_layer is not None)
    if keep is not None:
        dataset = _with_kept(dataset, load(keep))
    return dataset, None if eval_data is None else load(eval_data)


def _with_kept(dataset: Dataset, kept: Dataset) -> Dataset:
    if (found := _input_shapes(kept)) != (expected := _input_shapes(dataset)):
        raise InputError(f"keep: its rows have the augmenter_inputs {found}, but those of data are {expected}")
    kept = replace(kept, kept=np.ones(len(kept), np.bool_))
    return replace(Dataset.joined([dataset, kept]), states_of=dataset.states_of)


def _input_shapes(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of one sample's inputs."""
    return {
        f"{name}.{key}": value.shape[1:]
        for name, inputs in dataset.augmenter_inputs.items()
        for key, value in inputs.items()
    }


def longest_sample(plan: Plan, settings: TrainSettings) -> int | None:
    """Return the most tokens that a sample may have; None where nothing limits it.

    Args:
        plan: Of the composition.
        settings: Of the run.

    Raises:
        TrainingError: `max_length` is beyond the anchor's context.
    """
    context: int | None = plan.anchor.card.context_length
    if settings.max_length is not None and context is not None and settings.max_length > context:
        raise TrainingError(f"settings.max_length: got {settings.max_length}, but the anchor's context is {context}")
    # A sample above the budget would be a batch above the budget.
    limits = (settings.max_length or context, settings.tokens_per_batch)
    return min((limit for limit in limits if limit is not None), default=None)
