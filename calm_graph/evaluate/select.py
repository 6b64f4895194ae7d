"""Which systems there are to choose from, by name, and how each is made of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from calm_graph.declare.base import near
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.run import Candidate
from calm_graph.evaluate.tasks.task import Task
from calm_graph.interrupts import StopRequest

if TYPE_CHECKING:
    from calm_graph.model.composed import ComposedModel
    from registry import ModelCard


@dataclass
class Setup:
    """What systems are made of.

    Args:
        checkpoint: Folder, hub id or address of a trained composition.
        dtype: Name of torch's type of the frozen weights.
        batch_size: Prompts answered and rows scored at once.
        seed: Of the run, and of systems that are trained for it.
        data: Folder of the tasks' files.
        tasks: What will be asked; systems that are trained take the training rows of these.
        out: Folder of the run; systems that are trained are kept there.
        selector: Of `composed_selected`, as `read_selector` takes it.
        stop: Looked at where making a system takes long.
    """

    checkpoint: str
    dtype: str = "float32"
    batch_size: int = 16
    seed: int = 0
    data: Path | None = None
    tasks: Sequence[Task] = field(default_factory=tuple)
    out: Path = Path()
    selector: str | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def predictions(self) -> Path:
        """Folder of what systems have answered."""
        return self.out / "predictions"

    @cached_property
    def composed(self) -> ComposedModel:
        """The trained composition, loaded once."""
        import torch
        from transformers.utils import logging

        from calm_graph.model.composed import ComposedModel

        logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else None
        try:
            return ComposedModel.from_pretrained(self.checkpoint, dtype=self.dtype, device_map=device)
        except TypeError as error:
            raise EvaluationError(str(error)) from None

    @property
    def augmenters(self) -> dict[str, ModelCard]:
        """Name -> card of the augmenters that the anchor reads."""
        plan = self.composed.plan
        cards = {run.name: run.card for run in plan.runs}
        return {edge.source: cards[edge.source] for edge in plan.edges if edge.target == plan.anchor.name}


Maker = Callable[[Setup], Sequence[Candidate]]
"""Names the systems of one kind that a setup has; none of them is loaded yet."""


@dataclass(frozen=True, slots=True)
class SystemKind:
    """What may be chosen.

    Args:
        summary: What it is, in a sentence.
        make: Its systems.
        default: Whether it is evaluated when nothing is chosen.
    """

    summary: str
    make: Maker
    default: bool = False


def _anchor(setup: Setup) -> list[Candidate]:
    from calm_graph.evaluate.systems.engine import EngineSystem

    return [Candidate("anchor", lambda: EngineSystem.anchor(setup.composed, batch_size=setup.batch_size))]


def _augmenters(setup: Setup) -> list[Candidate]:
    import torch

    from calm_graph.evaluate.systems.plain import PlainSystem

    names = list(setup.augmenters)
    return [
        Candidate(
            system,
            partial(
                PlainSystem.of_card,
                setup.augmenters[name],
                name=system,
                dtype=getattr(torch, setup.dtype),
                device=setup.composed.device,
                batch_size=setup.batch_size,
            ),
        )
        for name in names
        for system in ["augmenter" if len(names) == 1 else f"augmenter_{name}"]
    ]


def _composed(setup: Setup) -> list[Candidate]:
    from calm_graph.evaluate.systems.engine import EngineSystem

    return [Candidate("composed", lambda: EngineSystem(setup.composed, batch_size=setup.batch_size))]


def _composed_selected(setup: Setup) -> list[Candidate]:
    from calm_graph.evaluate.systems.engine import EngineSystem

    name, selector = "composed_selected", setup.selector
    if selector is None:
        raise EvaluationError(f"{name}: what should choose? Name a file of `calm-graph fit-selector`, or a function")
    return [
        Candidate(name, lambda: EngineSystem(setup.composed, name=name, selector=selector, batch_size=setup.batch_size))
    ]


def _composed_without(setup: Setup) -> list[Candidate]:
    from calm_graph.evaluate.systems.engine import EngineSystem

    def make(name: str) -> EngineSystem:
        return EngineSystem(
            setup.composed, name=f"composed_without_{name}", scales={name: 0.0}, batch_size=setup.batch_size
        )

    names = list(setup.augmenters)
    return [Candidate(f"composed_without_{name}", partial(make, name)) for name in names] if len(names) > 1 else []


SYSTEMS: dict[str, SystemKind] = {
    "anchor": SystemKind("the anchor alone: all augmenters are off", _anchor, default=True),
    "augmenter": SystemKind("each augmenter alone, with its own tokenizer", _augmenters, default=True),
    "composed": SystemKind("the checkpoint", _composed, default=True),
    "composed_selected": SystemKind(
        "the checkpoint with the augmenters that --selector chooses for each prompt", _composed_selected
    ),
    "composed_without": SystemKind("the checkpoint with one augmenter off, each in turn", _composed_without),
}
"""Name -> what can be evaluated. A system of one's own is one more entry."""


def select(names: Sequence[str] | None, setup: Setup) -> list[Candidate]:
    """Return the systems of these names.

    Args:
        names: Of `SYSTEMS`; None: the default ones.
        setup: What they are made of.

    Returns:
        The systems, none of them loaded yet.

    Raises:
        EvaluationError: There is none of a name.
    """
    chosen = [name for name, kind in SYSTEMS.items() if kind.default] if names is None else list(names)
    for name in chosen:
        if name not in SYSTEMS:
            raise EvaluationError(f"systems: got {name!r}, but there are {', '.join(SYSTEMS)}{near(name, SYSTEMS)}")
    return [candidate for name in dict.fromkeys(chosen) for candidate in SYSTEMS[name].make(setup)]
