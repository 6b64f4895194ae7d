"""How a composition is trained; every number has a default, and a run stores the ones it used."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from calm_graph.declare.base import Declared, problems_of
from calm_graph.errors import DeclarationError

Precision = Literal["fp32", "bf16"]
LongRows = Literal["error", "skip", "cut"]
Order = Literal["shuffled", "given"]


class TrainSettings(Declared):
    """The settings of one training run.

    Args:
        max_steps: Optimiser steps in all.
        batch_size: Samples per optimiser step, whatever the number of pieces they are run in.
        gradient_accumulation_steps: Pieces each batch is run in. More pieces need less memory; the step is the same,
            because the loss is the mean over all supervised tokens of the batch.
        order: `shuffled` draws another order in each epoch; `given` takes the rows as they stand, batch by batch, such
            as those of a curriculum.
        pool_batches: Batches are of similar lengths, sorted within pools of so many batches, for less padding; 1 draws
            them at random, which learns better where length tells kinds of rows apart. Rows in `given` order have no
            pools.
        learning_rate: The peak, reached after the warm-up.
        min_lr_ratio: The last step's learning rate as a share of the peak, in 0..1.
        warmup_steps: Steps during which the learning rate rises linearly from 0.
        weight_decay: AdamW's, on matrices only (not on norms and gates).
        betas: AdamW's decay rates of the first and second moment.
        max_grad_norm: Gradients are scaled down to this norm; None leaves them.
        seed: Seeds the attachments' initialisation and the order of the data.
        max_length: Tokens per sample, prompt and completion together; None takes the anchor's context length.
        long_rows: What happens to a longer row: `error` stops before training, `skip` leaves it out, `cut` keeps its
            first `max_length` tokens; the rows that were skipped or cut are counted and reported.
        eval_every_steps: Steps between two evaluations; the first one is before training.
        patience: Stop early after so many evaluations without a better loss; None never does.
        checkpoint_every_steps: Steps between two resumable checkpoints; the last step has one anyway.
        keep_checkpoints: How many resumable checkpoints stay on disk, newest first.
        log_every_steps: Steps between two progress lines when there is no terminal.
        precision: `fp32`, or `bf16` autocast; the trained weights are kept as they are either way. Frozen weights are
            kept as their files hold them, but `fp32` on a CPU widens them, which is exact and much faster.
        device: `auto` takes a GPU when there is one; otherwise any name that torch knows, such as `cuda:1`.
    """

    max_steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    order: Order = "shuffled"
    pool_batches: int = Field(default=50, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    max_length: int | None = Field(default=None, ge=2)
    long_rows: LongRows = "error"
    eval_every_steps: int = Field(default=200, ge=1)
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every_steps: int = Field(default=200, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every_steps: int = Field(default=10, ge=1)
    precision: Precision = "fp32"
    device: str = "auto"

    @field_validator("betas")
    @classmethod
    def _betas_are_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas

    @model_validator(mode="after")
    def _pieces_fit_the_batch(self) -> Self:
        if self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but a batch of "
                f"batch_size={self.batch_size} samples cannot be run in more than {self.batch_size} pieces"
            )
        return self

    @classmethod
    def parse(cls, data: object, *, where: str = "settings") -> Self:
        """Make settings from plain data, such as parsed JSON or command-line text.

        Args:
            data: The fields as a mapping; numbers may be text.
            where: What the data is, for the error: a file name.

        Returns:
            The settings.

        Raises:
            DeclarationError: Fields are unknown or out of range; all of them are listed.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DeclarationError(problems_of(error, root="settings"), where=where) from None

    def updated(self, **changes: Any) -> Self:
        """Return a copy with these fields changed, checked like a new one.

        Raises:
            DeclarationError: A field is unknown or out of range.
        """
        return self.parse({**self.model_dump(), **changes})
