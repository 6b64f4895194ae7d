"""How well held-out completions are predicted: loss per token, and bits per byte, which no tokenizer changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

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
    precision: Precision = "fp32",
    workers: Workers = ALONE,
) -> Evaluation:
    """Run the held-out samples once.

    Args:
        model: A composed model; its training mode is put back afterwards.
        dataset: The samples; all of them are run, in batches of similar lengths that the workers share out.
        batch_size: Samples per batch.
        precision: `bf16` runs the model under autocast.
        workers: Who runs it.

    Returns:
        Loss and bits per byte, the same for every worker.
    """
    samples = dataset.samples
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].input_ids))
    was_training = model.training
    model.eval()
    try:
        total = 0.0
        for first in range(workers.rank * batch_size, len(order), workers.count * batch_size):
            batch = dataset.batch(order[first : first + batch_size])
            total += run(model, batch, device=workers.device, precision=precision, num_items_in_batch=1).item()
    finally:
        model.train(was_training)
    total = sum(values[0] for values in workers.gather([total]))
    num_tokens = sum(sample.num_supervised for sample in samples)
    num_bytes = sum(sample.completion_bytes for sample in samples)
    return Evaluation(loss=total / num_tokens, bits_per_byte=total / math.log(2) / num_bytes)
