"""How a composition is trained; every number has a default, and a run stores the ones it used."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from calm_graph.declare.base import Declared

Precision = Literal["fp32", "bf16"]
Sharding = Literal["none", "fsdp"]
LongRows = Literal["error", "skip", "cut"]
Order = Literal["shuffled", "given"]


class TrainSettings(Declared):
    """The settings of one training run.

    Args:
        max_steps: Optimiser steps in all.
        batch_size: Samples per optimiser step, whatever the number of pieces they are run in.
        tokens_per_batch: Positions per optimiser step, padding included, instead of a number of samples; rows of one
            length or another then cost the same memory. A longer row is treated as `long_rows` says.
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
            first `max_length` tokens, if its prompt leaves room for a completion, and skips it otherwise; the rows that
            were skipped or cut are counted and reported.
        eval_every_steps: Steps between two evaluations; the first one is before training.
        patience: Stop early after so many evaluations without a better loss; None never does.
        checkpoint_every_steps: Steps between two resumable checkpoints; the last step has one anyway.
        keep_checkpoints: How many resumable checkpoints stay on disk, newest first.
        log_every_steps: Steps between two progress lines when there is no terminal.
        told_layer: Train states, not answers (context distillation): what the anchor holds over a row after this layer
            should be what it would hold alone, had the prompt been the row's `told`: what the augmenters know written
            out, in as many tokens. Blocks above do not run; evaluations are of answers, as ever. None trains answers.
        selector: `package.module:function`, which chooses among the augmenters for each row's prompt, as one may when
            serving: those that are not chosen add nothing to it. A composition learns to do without them where it will.
        precision: `fp32`, or `bf16` autocast; the trained weights are kept as they are either way. Frozen weights are
            kept as their files hold them, but `fp32` on a CPU widens them, which is exact and much faster.
        activation_checkpointing: Run the frozen blocks again in the backward instead of keeping what they computed: the
            same step, from less memory, in more time.
        sharding: `fsdp` spreads each frozen model over all workers (FSDP2), for models that do not fit one device;
            `none` gives each worker a copy.
        placement: Name of a model -> its device, for models on several GPUs: `{"anchor-name": "cuda:0", ...}`. Models
            that are not named go with the anchor. Takes the place of `device`.
        device: `auto` takes a GPU when there is one; otherwise any name that torch knows, such as `cuda:1`. Ray workers
            take the device that Ray gives them.
        num_workers: Processes that share each batch, started by Ray; 0 trains in this process. The step is the same
            for any number. A pair (fewest, most) lets Ray add and remove workers as nodes come and go.
        use_gpu: Each Ray worker gets a GPU of its own.
        cpus_per_worker: CPUs of each Ray worker; None shares out those of the cluster.
        max_failures: Times that lost workers are replaced, each time from the last checkpoint, before the run fails.
        hang_timeout_s: A worker that does not answer the others for so long counts as lost.
        wait_for_resources_s: How long an autoscaling cluster may take to grow to what the workers need; 0 refuses at
            once what the cluster does not have.
    """

    root: ClassVar[str] = "settings"

    max_steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    tokens_per_batch: int | None = Field(default=None, ge=2)
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
    told_layer: int | None = Field(default=None, ge=0)
    selector: str | None = None
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    sharding: Sharding = "none"
    placement: dict[str, str] = Field(default_factory=dict)
    device: str = "auto"
    num_workers: int | tuple[int, int] = 0
    use_gpu: bool = False
    cpus_per_worker: int | None = Field(default=None, ge=1)
    max_failures: int = Field(default=3, ge=0)
    hang_timeout_s: float = Field(default=600.0, gt=0)
    wait_for_resources_s: float = Field(default=0.0, ge=0)

    @field_validator("num_workers", mode="before")
    @classmethod
    def _workers_are_a_number_or_a_range(cls, num_workers: object) -> object:
        """Allow `4:16` for a pair, as the command line writes it."""
        parts = num_workers.split(":") if isinstance(num_workers, str) else num_workers
        numbers = [int(part) for part in parts] if isinstance(parts, list | tuple) and _are_whole(parts) else [parts]
        match numbers:
            case [int(count)] if count >= 0:
                return count
            case [int(fewest), int(most)] if 1 <= fewest <= most:
                return (fewest, most)
        raise ValueError("must be 0, a number of workers, or (fewest, most) with 1 <= fewest <= most, such as 4:16")

    @field_validator("betas")
    @classmethod
    def _betas_are_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas

    @model_validator(mode="after")
    def _pieces_fit_the_batch(self) -> Self:
        if self.tokens_per_batch is None and self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but a batch of "
                f"batch_size={self.batch_size} samples cannot be run in more than {self.batch_size} pieces"
            )
        return self

    @model_validator(mode="after")
    def _told_states_are_whole(self) -> Self:
        # A sharded model's forward has to come to its end, and this one stops after `told_layer`.
        if self.told_layer is not None and self.sharding != "none":
            raise ValueError(f"told_layer is {self.told_layer}, but states are compared with sharding='none' only")
        return self

    def updated(self, **changes: Any) -> Self:
        """Return a copy with these fields changed, checked like a new one.

        Raises:
            DeclarationError: A field is unknown or out of range.
        """
        return self.parse({**self.model_dump(), **changes})


def _are_whole(parts: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(part, int) or (isinstance(part, str) and part.isdecimal()) for part in parts)
