"""What baselines are compared with: a composition, its trained parameters, and the run that trained them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from calm_graph.declare.composition import Composition
from calm_graph.declare.files import load_composition, stored_cards
from calm_graph.declare.settings import TrainSettings
from calm_graph.plan.estimate import count_parameters
from calm_graph.plan.graph import make_plan
from calm_graph.plan.parts import Plan
from calm_graph.train.folder import RunFolder
from calm_graph.train.state import FACTS
from registry import ModelCard, Registry
from registry import registry as default_registry


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A composition as the measure of its baselines.

    Args:
        plan: Of the composition.
        registry: Knows the models in it.
        settings: Of the run that trained it; None where there was no run.
        data_fingerprint: Of the rows it was trained on; None where that is not known.
    """

    plan: Plan
    registry: Registry
    settings: TrainSettings | None = None
    data_fingerprint: str | None = None

    @property
    def anchor(self) -> ModelCard:
        """Card of the anchor, with its facts."""
        return self.plan.anchor.card

    @property
    def num_parameters(self) -> int:
        """How many parameters the composition trains."""
        return sum(count_parameters(planned) for planned in self.plan.attachments if planned.trainable)

    @classmethod
    def of(cls, source: str | Path | Composition, *, registry: Registry | None = None) -> Reference:
        """Read a composition and, where it is a run's folder, how it was trained.

        Args:
            source: A declaration, its file, or the folder of a checkpoint.
            registry: Where names are looked up; None is the default registry. It is not changed.

        Returns:
            The reference.

        Raises:
            DeclarationError: The composition cannot be read or has mistakes.
        """
        cards = Registry(default_registry if registry is None else registry)
        if isinstance(source, Composition):
            return cls(plan=make_plan(source, registry=cards), registry=cards)
        for card in stored_cards(source):
            if card.name not in cards:
                cards.add(card)
        run = RunFolder(Path(source))
        settings, fingerprint = None, None
        if run.settings_file.is_file():
            settings = TrainSettings.parse(json.loads(run.settings_file.read_text()), where=str(run.settings_file))
        if (state := run.last_state()) is not None:
            fingerprint = json.loads((state / FACTS).read_text())["data_fingerprint"]
        plan = make_plan(load_composition(source), registry=cards)
        return cls(plan=plan, registry=cards, settings=settings, data_fingerprint=fingerprint)
