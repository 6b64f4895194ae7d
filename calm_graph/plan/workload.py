"""What a training run does on each device, as far as its cost depends on it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from calm_graph.declare.base import Declared
from calm_graph.declare.settings import Precision

States = Literal["none", "augmenters", "cached"]
Sharding = Literal["none", "fsdp"]


class Workload(Declared):
    """The shape of one step on one device, and of the whole run.

    Args:
        batch_size: Samples that one device runs at once.
        sequence_length: Anchor tokens of a sample, prompt and completion.
        prompt_share: Share of them that is the prompt, which has no loss.
        num_tokens: Anchor tokens that are trained on, repetitions included.
        epochs: How often each sample is seen; the data set has num_tokens / epochs tokens.
        precision: Of the arithmetic and of the frozen weights; trained weights stay in fp32.
        states: What was computed beforehand and is read: `augmenters`: their states; `cached`: and the anchor's below
            its first attachment, which is what `calm-graph precompute` keeps where nothing else is said.
        sharding: `fsdp` spreads the frozen weights over the devices.
        activation_checkpointing: Blocks of frozen models are run again in the backward pass, which keeps only what goes
            into them.
        told_layer: With told prompts (`TrainSettings.told_layer`): the anchor's layer after which states are compared;
            nothing above runs, and the anchor alone runs as far over the told texts.
        keep_share: Share of the samples that are kept (`fit(keep=)`): the anchor alone runs over them as well.
        token_ratios: Run -> its tokens for each token of the anchor, for another tokenizer; 1 where it is not given.
    """

    root: ClassVar[str] = "workload"

    batch_size: int = Field(default=8, ge=1)
    sequence_length: int = Field(default=1024, ge=2)
    prompt_share: float = Field(default=0.5, ge=0, lt=1)
    num_tokens: float = Field(default=1e9, gt=0)
    epochs: float = Field(default=1, gt=0)
    precision: Precision = "bf16"
    states: States = "none"
    sharding: Sharding = "none"
    activation_checkpointing: bool = False
    told_layer: int | None = Field(default=None, ge=0)
    keep_share: float = Field(default=0, ge=0, le=1)
    token_ratios: dict[str, float] = Field(default_factory=dict)

    @property
    def value_bytes(self) -> int:
        """Bytes of a number in the precision of the arithmetic."""
        return 2 if self.precision == "bf16" else 4

    @property
    def num_prompt_tokens(self) -> int:
        """Anchor tokens of a sample that are the prompt."""
        return round(self.sequence_length * self.prompt_share)

    @property
    def num_supervised_tokens(self) -> int:
        """Anchor tokens of a sample that are predicted; without a prompt nothing predicts the first one."""
        return self.sequence_length - max(self.num_prompt_tokens, 1)
