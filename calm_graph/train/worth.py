"""What each augmenter is worth to each row: how much likelier its completion is with it than without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from calm_graph.data.order import split
from calm_graph.data.samples import Batch, Dataset
from calm_graph.model.composed import ComposedModel
from calm_graph.model.losses import supervised_positions
from calm_graph.progress import Show, progress


def gains(model: ComposedModel, dataset: Dataset, names: Sequence[str], *, batch_size: int, show: Show) -> torch.Tensor:
    """Compare all augmenters with all but one, for each one.

    Args:
        model: A trained composition.
        dataset: R rows.
        names: The A augmenters to leave out in turn.
        batch_size: Rows run at once.
        show: How progress is shown.

    Returns:
        Nats per token of the completion that each augmenter saves, float32 [R, A], on the CPU.
    """
    gain_RA = torch.zeros(len(dataset), len(names))
    order = np.argsort(dataset.lengths, kind="stable")[::-1]
    with progress(show, label="what augmenters are worth", total=len(dataset)) as advance:
        for rows in split(order, dataset.lengths, batch_size=batch_size):
            batch = dataset.batch(rows.tolist())
            all_B = _nats_per_token(model, batch, {})
            for place, name in enumerate(names):
                gain_RA[torch.from_numpy(rows.copy()), place] = _nats_per_token(model, batch, {name: 0.0}) - all_B
            advance(len(rows))
    return gain_RA


@torch.no_grad()
def _nats_per_token(model: ComposedModel, batch: Batch, scales: Mapping[str, float]) -> torch.Tensor:
    """Return the mean surprise of each row's completion, float32 [B], on the CPU."""
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
