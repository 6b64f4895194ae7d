"""The catalogue: cards by name and by tag, from Python, from folders and from installed packages."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from registry.card import ModelCard
from registry.errors import CardError, UnknownModelError
from registry.remote import described
from registry.sources import read_facts

ENTRY_POINT_GROUP = "calm_graph.cards"
CARD_FILE = "card.json"
"""The card in a model's own folder."""


class Registry:
    """A set of cards with unique names.

    Cards of installed packages (entry points of group `calm_graph.cards`) are read when a name or a listing first
    needs them, so that a broken package never stops a model that is already known.
    """

    def __init__(self, cards: Iterable[ModelCard] = (), *, entry_points: bool = False) -> None:
        """Make a registry of `cards`; with `entry_points`, installed packages add theirs on the first need."""
        self._cards: dict[str, ModelCard] = {}
        self._entry_points_pending = entry_points
        self._entry_point_problems: tuple[str, ...] = ()
        for card in cards:
            self.add(card)

    def add(self, card: ModelCard, *, replace: bool = False) -> ModelCard:
        """Add a card and return it; adding an equal card again does nothing.

        Raises:
            CardError: another card has this name and `replace` is not set.
        """
        known = self._cards.get(card.name)
        if known is not None and known != card and not replace:
            raise CardError(
                f"card {card.name!r} ({card.source}): the registry already has this name, for {known.source}; "
                "choose another name or pass replace=True"
            )
        self._cards[card.name] = card
        return card

    def get(self, name: str) -> ModelCard:
        """Return the card `name`, its empty facts filled from the model's own files where these are on this machine.

        A service is asked for them.

        Raises:
            UnknownModelError: no card has this name; the error carries the nearest names.
        """
        if name not in self._cards:
            self._need_entry_points(warn=False)
        if name not in self._cards:
            raise UnknownModelError(name, self.nearest(name), note="; ".join(self._entry_point_problems))
        card = self._cards[name]
        if card.runtime == "remote":
            return described(card)
        return card.with_facts(read_facts(card)) if card.missing_facts() else card

    def nearest(self, name: str) -> list[str]:
        """Return up to three known names that look like `name`, the most alike first."""
        self._need_entry_points()
        by_lower = {known.lower(): known for known in self._cards}
        return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.55)]

    def tagged(self, *tags: str) -> tuple[ModelCard, ...]:
        """Return the cards that carry every one of `tags`, as declared, in the order in which they were added."""
        self._need_entry_points()
        return tuple(card for card in self._cards.values() if card.tags.issuperset(tags))

    def exports_of(self, name: str) -> tuple[ModelCard, ...]:
        """Return the cards of ONNX exports that were made from the card `name`."""
        self._need_entry_points()
        return tuple(card for card in self._cards.values() if card.onnx is not None and card.onnx.origin == name)

    def tags(self) -> tuple[str, ...]:
        """Return every tag in use, sorted."""
        self._need_entry_points()
        return tuple(sorted({tag for card in self._cards.values() for tag in card.tags}))

    def names(self) -> tuple[str, ...]:
        """Return every name, in the order in which the cards were added."""
        self._need_entry_points()
        return tuple(self._cards)

    def add_folder(self, path: str | Path, *, replace: bool = False) -> tuple[ModelCard, ...]:
        """Add every `*.json` file of a folder as one card; relative paths in a `source` start at that folder.

        A model's own folder, which holds `card.json` beside `config.json` as exports do, is one card.

        Returns:
            The cards, by file name.

        Raises:
            CardError: the folder is missing, or some files are not cards; nothing is added then, and all are named.
        """
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise CardError(f"{folder}: no such folder of cards")
        cards: list[ModelCard] = []
        problems: list[str] = []
        own = folder / CARD_FILE
        is_model = own.is_file() and (folder / "config.json").is_file()
        for file in [own] if is_model else sorted(folder.glob("*.json")):
            try:
                cards.append(ModelCard.model_validate(_anchored(json.loads(file.read_text("utf-8")), folder)))
            except ValidationError as error:
                problems.extend(f"{file}: {_line(problem)}" for problem in error.errors())
            except (ValueError, OSError) as error:
                problems.append(f"{file}: not readable as JSON: {error}")
        if problems:
            raise CardError("\n".join(problems))
        for card in cards:
            self.add(card, replace=replace)
        return tuple(cards)

    def load_entry_points(self, group: str = ENTRY_POINT_GROUP) -> tuple[ModelCard, ...]:
        """Add the cards that installed packages offer: a `ModelCard`, an iterable of them, or a callable giving either.

        Raises:
            CardError: some entry points are broken; every one is named, and the cards of the others are in place.
        """
        cards, problems = self._read_entry_points(group)
        if problems:
            raise CardError("\n".join(problems))
        return cards

    def _read_entry_points(self, group: str) -> tuple[tuple[ModelCard, ...], tuple[str, ...]]:
        cards: list[ModelCard] = []
        problems = []
        for point in metadata.entry_points(group=group):
            package = point.dist.name if point.dist else "an unknown package"
            try:
                cards.extend(self.add(card) for card in _as_cards(point.load()))
            except Exception as error:  # whatever a foreign package raises must be told as its own fault
                reason = f"{type(error).__name__}: {error}"
                problems.append(f"entry point {point.name!r} ({point.value}) of {package} is broken: {reason}")
        return tuple(cards), tuple(problems)

    def _need_entry_points(self, *, warn: bool = True) -> None:
        if not self._entry_points_pending:
            return
        self._entry_points_pending = False
        _, self._entry_point_problems = self._read_entry_points(ENTRY_POINT_GROUP)
        if warn:
            for problem in self._entry_point_problems:
                warnings.warn(problem, RuntimeWarning, stacklevel=3)

    def __contains__(self, name: object) -> bool:
        if name not in self._cards:
            self._need_entry_points()
        return name in self._cards

    def __iter__(self) -> Iterator[ModelCard]:
        self._need_entry_points()
        return iter(tuple(self._cards.values()))

    def __len__(self) -> int:
        self._need_entry_points()
        return len(self._cards)

    def __repr__(self) -> str:
        return f"Registry({len(self._cards)} cards)"


def _as_cards(offer: Any) -> Iterable[ModelCard]:
    if isinstance(offer, ModelCard):
        return [offer]
    if callable(offer):
        return _as_cards(offer())
    cards = list(offer)
    for card in cards:
        if not isinstance(card, ModelCard):
            raise TypeError(f"expected ModelCard, got {type(card).__name__}")
    return cards


def _anchored(data: Any, folder: Path) -> Any:
    """Make a relative path in `source` start at the folder that the card file is in."""
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        scheme, _, location = data["source"].partition(":")
        if scheme in ("folder", "gguf") and location:
            data = {**data, "source": f"{scheme}:{(folder / Path(location).expanduser()).resolve()}"}
    return data


def _line(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
