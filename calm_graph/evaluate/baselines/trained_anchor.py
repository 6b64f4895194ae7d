"""An anchor of whose own weights some are trained, so that `fit` trains it as it trains a composition."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import CheckpointError
from calm_graph.model.build import build_model
from calm_graph.model.checkpoint import staged
from calm_graph.model.composed import ComposedModel
from calm_graph.model.config import CalmGraphConfig
from calm_graph.plan.alone import plan_alone
from calm_graph.train.job import find_device
from registry import ModelCard
from registry.weights import identity

DESCRIPTION = "baseline.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a trained baseline says of itself.

    Args:
        kind: `lora` or `full_finetune`.
        anchor: Card of the model that was trained, with the fingerprint of its files before.
        num_parameters: How many are trained.
        num_composition_parameters: How many the composition trains that this is compared with; None: it was not said.
    """

    kind: str
    anchor: ModelCard
    num_parameters: int
    num_composition_parameters: int | None = None

    def write(self, folder: Path) -> None:
        """Write the description into a folder."""
        facts = {**asdict(self), "anchor": self.anchor.model_dump(mode="json"), "schema_version": SCHEMA_VERSION}
        (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read the description of a folder.

        Raises:
            CheckpointError: There is none, it is damaged, or newer than this version.
        """
        file = folder / DESCRIPTION
        try:
            facts: dict[str, Any] = json.loads(file.read_text())
            version = facts.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise CheckpointError(f"{file}: got schema_version {version}, but this version reads {SCHEMA_VERSION}")
            return cls(**{**facts, "anchor": ModelCard.model_validate(facts["anchor"])})
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder}: there is no {DESCRIPTION}; is it the folder that train_baselines wrote?"
            ) from None
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise CheckpointError(f"{file}: damaged ({error}); train the baseline again") from error


class TrainedAnchor(ComposedModel, ABC):  # type: ignore[misc]  # as of ComposedModel itself
    """An anchor alone, of whose weights some are trained; each kind says which, and how they are kept.

    It is a composed model without augmenters, so loss, batches, order, evaluation, states and the choice of the best
    step are those of compositions, line for line.

    Args:
        card: Of the anchor.
        settings: Of the run that is to come.
        name: What the model is called.
        num_composition_parameters: How many parameters the composition trains that this is compared with.
        widen: Hold the weights in float32 wherever they are: small updates of trained bf16 weights would be rounded
            away. Otherwise they are held as those of a composition's anchor.
    """

    kind: str

    def __init__(
        self,
        card: ModelCard,
        *,
        settings: TrainSettings,
        name: str,
        num_composition_parameters: int | None = None,
        widen: bool = False,
    ) -> None:
        on_cpu = find_device(settings.device).type == "cpu" and settings.precision == "fp32"
        alone = build_model(plan_alone(card, name=name), dtype=torch.float32 if widen or on_cpu else None)
        config = cast(CalmGraphConfig, alone.config)
        super().__init__(config, anchor=alone.anchor, graph=alone.graph, tokenizer=alone.tokenizer)
        self.card = card.model_copy(update={"fingerprint": identity(card)})
        self.num_composition_parameters = num_composition_parameters

    @property
    def num_trained(self) -> int:
        """How many parameters are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Write what is trained and what it belongs to; a file is replaced whole or not at all.

        Args:
            save_directory: The folder; what else is in it is left alone.
            kwargs: Not looked at.
        """
        with staged(Path(save_directory)) as stage:
            self.write_trained(stage)
            self.tokenizer.save_pretrained(stage)
            Description(
                kind=self.kind,
                anchor=self.card,
                num_parameters=self.num_trained,
                num_composition_parameters=self.num_composition_parameters,
            ).write(stage)

    def load_composition_weights(self, folder: str | os.PathLike[str]) -> None:
        """Take the trained parameters of a folder that `save_pretrained` wrote.

        Args:
            folder: The folder.

        Raises:
            CheckpointError: It holds another baseline.
        """
        found = Description.read(Path(folder))
        if (found.kind, found.anchor.fingerprint) != (self.kind, self.card.fingerprint):
            raise CheckpointError(
                f"{folder}: is {found.kind} of {found.anchor.name!r} ({found.anchor.fingerprint}), but {self.kind} of "
                f"{self.card.name!r} ({self.card.fingerprint}) is needed"
            )
        self.read_trained(Path(folder))

    @abstractmethod
    def write_trained(self, folder: Path) -> None:
        """Write the trained tensors."""

    @abstractmethod
    def read_trained(self, folder: Path) -> None:
        """Put the tensors of a folder over the trained ones."""
