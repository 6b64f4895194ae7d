"""Selectors over rows: which augmenters each row of a batch has, as an engine would choose for its prompt."""

from __future__ import annotations

import torch

from calm_graph.data.samples import Batch
from calm_graph.generate.selector import Prompt, Selector, chosen
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import nonempty_prompt_ids


def chosen_scales(selector: Selector, model: ComposedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Choose the augmenters of each row of a batch.

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
        for text, ids in zip(batch["prompt_texts"], row_prompts(model, batch), strict=True)
    ]
    return {name: torch.tensor([scale if name in row else 0.0 for row in of_rows]) for name, scale in edges.items()}


def row_prompts(model: ComposedModel, batch: Batch) -> list[list[int]]:
    """Return the ids of each row's prompt as an engine reads it: never empty.

    Args:
        model: The composition.
        batch: B rows.
    """
    lengths: list[int] = batch["prompt_lengths"].tolist()
    return [
        ids[:length].tolist() if length else nonempty_prompt_ids(model.tokenizer, "")
        for ids, length in zip(batch["input_ids"], lengths, strict=True)
    ]
