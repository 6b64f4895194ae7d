"""One optimiser step: the same function in one process and in each worker of many."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calm_graph.data.samples import IGNORED, Batch
from calm_graph.declare.settings import Precision, TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.train.workers import ALONE, Workers


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did.

    Args:
        loss: Mean cross-entropy in nats over the supervised tokens of the batch, or mean difference of its states.
        grad_norm: Before clipping.
        num_tokens: Real tokens run, prompts included, by all workers.
        num_positions: Tokens and padding run.
        stop: Whether any worker was asked to stop.
    """

    loss: float
    grad_norm: float
    num_tokens: int
    num_positions: int
    stop: bool = False


class NonFiniteError(TrainingError):
    """The loss or its gradient is no number; the weights are as they were before the step.

    Args:
        what: `loss` or `gradient`.
        pieces: (rank, index of its piece) of what may be the cause; empty: any.
    """

    def __init__(self, what: str, pieces: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(what, pieces)
        self.what = what
        self.pieces = tuple(pieces)

    def __str__(self) -> str:
        return f"the {self.what} is not a finite number"


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name.

    Raises:
        TrainingError: There are none.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise TrainingError("the model has no trainable parameter; a composition needs at least one attachment")
    return parameters


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; only matrices decay, not norms and gates."""
    parameters = trainable_parameters(model).values()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step (0-based): a linear warm-up, then a cosine to `min_lr_ratio` of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    last = max(settings.max_steps - 1 - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / last, 1.0)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * cosine)


def count_items(pieces: Sequence[Batch]) -> int:
    """Return how many tokens of the pieces are predicted, or, where states are compared, how many there are."""
    return sum(
        int((piece["attention_mask"] if "told_ids" in piece else piece["labels"] != IGNORED).sum()) for piece in pieces
    )


def train_step(
    model: nn.Module,
    pieces: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    max_grad_norm: float | None = None,
    precision: Precision = "fp32",
    told_layer: int | None = None,
    num_items_in_batch: float | None = None,
    workers: Workers = ALONE,
    stop_requested: Callable[[], bool] = bool,
) -> StepResult:
    """Run one batch, in pieces, and update the trainable parameters once.

    The loss is the mean over the supervised tokens of all pieces of all workers together, so that neither the number
    of pieces nor that of workers changes the step.

    Args:
        model: A composed model, as `workers.replicate` returns it.
        pieces: This worker's share of the batch, cut into as many parts as memory asks for.
        optimizer: Over the trainable parameters.
        learning_rate: Of this step.
        max_grad_norm: Gradients are scaled down to this norm; None leaves them.
        precision: `bf16` runs the model under autocast.
        told_layer: Where states are compared with those of the pieces' `told_ids`.
        num_items_in_batch: What the summed loss is divided by; None is `count_items` of the pieces. As gradients are
            averaged over workers, several give the count over all of them divided by their number.
        workers: Who runs this step.
        stop_requested: Whether this worker was asked to stop.

    Returns:
        The loss, the gradient's norm and the tokens run, the same for every worker.

    Raises:
        NonFiniteError: The loss or the gradient is infinite or NaN, for every worker; nothing was updated.
    """
    count = num_items_in_batch if num_items_in_batch is not None else count_items(pieces)
    optimizer.zero_grad(set_to_none=True)
    losses: list[float] = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        with contextlib.nullcontext() if last else _no_sync(model):
            share = run(
                model,
                piece,
                device=workers.device,
                precision=precision,
                told_layer=told_layer,
                num_items_in_batch=count,
            )
            # Even a loss that is no number goes backward: the other workers wait for the gradients.
            share.backward()
        losses.append(share.item())
    bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), -1)
    num_tokens = sum(int(piece["attention_mask"].sum()) for piece in pieces)
    num_positions = sum(piece["attention_mask"].numel() for piece in pieces)
    told = workers.gather([sum(losses), bad, num_tokens, num_positions, stop_requested()])
    if culprits := [(rank, int(values[1])) for rank, values in enumerate(told) if values[1] >= 0]:
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError("loss", culprits)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    limit = math.inf if max_grad_norm is None else max_grad_norm
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    if not math.isfinite(grad_norm):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError("gradient")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=sum(values[0] for values in told) / workers.count,
        grad_norm=grad_norm,
        num_tokens=int(sum(values[2] for values in told)),
        num_positions=int(sum(values[3] for values in told)),
        stop=any(values[4] for values in told),
    )


def _no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep DistributedDataParallel from exchanging gradients before the last piece."""
    context: contextlib.AbstractContextManager[None] = getattr(model, "no_sync", contextlib.nullcontext)()
    return context


def run(
    model: nn.Module,
    batch: Batch,
    *,
    device: torch.device,
    precision: Precision,
    told_layer: int | None = None,
    num_items_in_batch: float,
) -> Tensor:
    """Return the loss of one batch, summed over its tokens (see `count_items`) and divided by `num_items_in_batch`."""
    inputs: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()
    }
    scales = inputs.pop("augmenter_scales", {})
    if told_layer is not None:
        inputs["told_layer"] = told_layer
    composed: Any = getattr(model, "module", model)  # DistributedDataParallel is around it
    with (
        composed.augmenters(scales),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = model(**inputs, num_items_in_batch=num_items_in_batch).loss
    assert isinstance(loss, Tensor)
    return loss
