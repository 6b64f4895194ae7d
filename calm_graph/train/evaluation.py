"""How well held-out completions are predicted: loss per token, and bits per byte, which no tokenizer changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from calm_graph.data.order import split
from calm_graph.data.samples import Dataset
from calm_graph.declare.settings import Precision
from calm_graph.train.step import run
from calm_graph.train.workers import ALONE, Workers


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one pass over held-out data.

    Args:
        loss: Mean cross-entropy in nats over the supervised tokens.
        bits_per_byte: Bits to predict the completions, end tokens included, per UTF-8 byte of their text.
    """

    loss: float
    bits_per_byte: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int,
    tokens_per_batch: int | None = None,
    precision: Precision = "fp32",
    workers: Workers = ALONE,
) -> Evaluation:
    """Run the held-out samples once.

    Args:
        model: A composed model; its training mode is put back afterwards.
        dataset: The samples; all of them are run, in batches of similar lengths that the workers share out.
        batch_size: Samples per batch.
        tokens_per_batch: Positions per batch, padding included, instead.
        precision: `bf16` runs the model under autocast.
        workers: Who runs it.

    Returns:
        Loss and bits per byte, the same for every worker.
    """
    order = np.argsort(dataset.lengths, kind="stable")
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        batches = split(order, dataset.lengths, batch_size=batch_size, tokens_per_batch=tokens_per_batch)
        for first in range(workers.rank, len(batches) + workers.rank, workers.count):
            # Workers that share out a frozen model must call it equally often, so some run one more than there is.
            batch = dataset.batch(batches[min(first, len(batches) - 1)].tolist())
            loss = run(model, batch, device=workers.device, precision=precision, num_items_in_batch=1).item()
            total += loss if first < len(batches) else 0.0
    finally:
        model.train(was_training)
    total = sum(values[0] for values in workers.gather([total]))
    num_tokens = dataset.num_supervised(range(len(dataset)))
    num_bytes = int(dataset.completion_bytes.sum(dtype=np.int64))
    return Evaluation(loss=total / num_tokens, bits_per_byte=total / math.log(2) / num_bytes)
