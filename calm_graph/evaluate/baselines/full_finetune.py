"""The anchor itself, trained in full: what the paper compares with when it speaks of forgetting (section 4.3)."""

from __future__ import annotations

from pathlib import Path

from calm_graph.declare.settings import TrainSettings
from calm_graph.evaluate.baselines.trained_anchor import TrainedAnchor
from registry import ModelCard
from registry.weights import load_causal_lm, quiet

LEARNING_RATE = 5e-5
"""Where nothing else is said."""


class FullFinetune(TrainedAnchor):
    """An anchor whose every weight is trained, in float32; states on disk hold three numbers for each.

    Args:
        card: Of the anchor.
        settings: Of the run that is to come.
        num_composition_parameters: How many the composition trains that this is compared with.
        name: What the model is called.
    """

    kind = "full_finetune"

    def __init__(
        self,
        card: ModelCard,
        *,
        settings: TrainSettings,
        num_composition_parameters: int | None = None,
        name: str = "full_finetune",
    ) -> None:
        super().__init__(
            card, settings=settings, name=name, num_composition_parameters=num_composition_parameters, widen=True
        )
        self.anchor.requires_grad_(True)

    def write_trained(self, folder: Path) -> None:
        """Write the model as an ordinary transformers folder."""
        with quiet():
            self.anchor.save_pretrained(folder)

    def read_trained(self, folder: Path) -> None:
        """Put the weights of a folder over the trained ones."""
        stored = load_causal_lm(ModelCard(name=self.card.name, source=f"folder:{folder}"), dtype=self.anchor.dtype)
        self.anchor.load_state_dict(stored.state_dict())
