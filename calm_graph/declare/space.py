"""What a sweep tries: values for placement, heads, reading, positions and learning rate, and their combinations."""

from __future__ import annotations

import itertools
import random
from typing import Any, ClassVar

from pydantic import Field, StrictInt, field_validator

from calm_graph.declare.base import Declared
from calm_graph.declare.composition import At, Composition, Every, Positions, Reading, at, every
from calm_graph.declare.settings import TrainSettings

Placement = Every | At


class Choice(Declared):
    """One combination; what is None stays as it was declared.

    Args:
        placement: Where every augmenter is attached.
        num_heads: Of every augmenter's attachments.
        reading: Of every augmenter.
        positions: Of every augmenter.
        learning_rate: Of the run.
    """

    placement: Placement | None = None
    num_heads: int | None = None
    reading: Reading | None = None
    positions: Positions | None = None
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """A name that tells it apart and may be a folder's: `every4-heads8-stream-lr0.001`."""
        parts = []
        if self.placement is not None:
            parts.append(_placement_text(self.placement))
        if self.num_heads is not None:
            parts.append(f"heads{self.num_heads}")
        parts += [value for value in (self.reading, self.positions and f"positions-{self.positions}") if value]
        if self.learning_rate is not None:
            parts.append(f"lr{self.learning_rate:g}")
        return "-".join(parts) or "as-declared"

    def composed(self, composition: Composition) -> Composition:
        """Return the composition with these values in each of its augmenters (not in nested compositions)."""
        values = {"num_heads": self.num_heads, "reading": self.reading, "positions": self.positions}
        changes: dict[str, Any] = {"attach": self.placement, **values}
        changes = {name: value for name, value in changes.items() if value is not None}
        augmenters = [augmenter.model_copy(update=changes) for augmenter in composition.augmenters]
        return composition.model_copy(update={"augmenters": tuple(augmenters)})

    def settings(self, settings: TrainSettings) -> TrainSettings:
        """Return the settings with this learning rate."""
        return settings if self.learning_rate is None else settings.updated(learning_rate=self.learning_rate)


class Space(Declared):
    """Values to try; an empty list leaves what was declared.

    Args:
        placement: `every(step)` or `at(anchor_layers=...)`; as text `every:4`, `at:3+7+11`.
        num_heads: Heads of the attachments.
        reading: `prompt`, `stream`.
        positions: `none`, `rotary`, `distance`.
        learning_rate: Peaks.
    """

    root: ClassVar[str] = "space"

    placement: tuple[Placement, ...] = ()
    num_heads: tuple[StrictInt, ...] = ()
    reading: tuple[Reading, ...] = ()
    positions: tuple[Positions, ...] = ()
    learning_rate: tuple[float, ...] = Field(default=())

    @field_validator("placement", mode="before")
    @classmethod
    def _placements_may_be_text(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        return tuple(_placement(value) if isinstance(value, str) else value for value in values)

    @field_validator("num_heads", mode="before")
    @classmethod
    def _numbers_may_be_text(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        return tuple(int(value) if isinstance(value, str) and value.isdecimal() else value for value in values)

    @field_validator("learning_rate")
    @classmethod
    def _rates_are_positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not all(rate > 0 for rate in rates):
            raise ValueError("each must be more than 0")
        return rates

    def choices(self, *, at_most: int | None = None, seed: int = 0) -> tuple[Choice, ...]:
        """Return every combination, or a random draw of some.

        Args:
            at_most: How many; None is all of them.
            seed: Of the draw.
        """
        fields = {name: getattr(self, name) or (None,) for name in type(self).model_fields}
        found = [Choice(**dict(zip(fields, values, strict=True))) for values in itertools.product(*fields.values())]
        found = list({choice.name: choice for choice in found}.values())
        if at_most is not None and at_most < len(found):
            chosen = set(random.Random(seed).sample(range(len(found)), at_most))
            found = [choice for index, choice in enumerate(found) if index in chosen]
        return tuple(found)


def _placement(text: str) -> Placement:
    kind, _, layers = text.partition(":")
    numbers = layers.split("+")
    if kind == "every" and len(numbers) == 1 and layers.isdecimal():
        return every(int(layers))
    if kind == "at" and all(number.isdecimal() for number in numbers):
        return at(anchor_layers=[int(number) for number in numbers])
    raise ValueError("a placement is every:STEP, such as every:4, or at:LAYER+LAYER, such as at:3+7+11")


def _placement_text(placement: Placement) -> str:
    if isinstance(placement, Every):
        return f"every{placement.step}"
    text = "at" + "_".join(map(str, placement.anchor_layers))
    return text if placement.augmenter_layers is None else text + "of" + "_".join(map(str, placement.augmenter_layers))
