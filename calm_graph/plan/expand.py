"""From a declaration to runs and edges: names become cards, rules become layers, nested compositions unfold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from calm_graph.declare.composition import Augmenter, Composition, OpenWords, Reading, Runtime
from calm_graph.declare.files import load_composition, stored_cards
from calm_graph.errors import DeclarationError, Problem
from calm_graph.plan.checks import (
    at_runtime,
    check_anchor,
    check_augmenter,
    check_facts,
    check_layers,
    check_name,
    look_up,
)
from calm_graph.plan.edges import plan_edge, takes_heads_of_anchor
from calm_graph.plan.parts import Edge, PlannedAttachment, module_key
from registry import ModelCard, Registry
from registry.layouts import COMPOSITION
from registry.sources import local_path


def _place(attachment: PlannedAttachment) -> tuple[str, int, int]:
    """Return what tells an attachment from all others of a declaration, however its runs come to be named."""
    return (attachment.path, attachment.augmenter_layer, attachment.anchor_layer)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained composition on disk, used as an augmenter.

    Args:
        card: Name of the card that names its folder.
        composition: What was trained.
        root: How its declaration is called in paths.
        keys: (path, augmenter layer, anchor layer) of each attachment -> its name in the checkpoint's file.
        registry: Where its names are looked up: what is known here, else the cards that the checkpoint keeps.
    """

    card: str
    composition: Composition
    root: str
    keys: dict[tuple[str, int, int], str]
    registry: Registry

    def trained(self, edge: Edge) -> Edge:
        """Return the edge with its attachments marked as this checkpoint's."""
        attachments = (
            replace(found, trainable=False, checkpoint=self.card, checkpoint_key=self.keys[_place(found)])
            for found in edge.attachments
        )
        return replace(edge, attachments=tuple(attachments))


@dataclass(frozen=True, slots=True)
class Reader:
    """A model and how it reads; two uses that agree in all of it are one run.

    Args:
        model: The card's name, or the nested composition itself, so that equal ones are one and trained as one.
        checkpoint: Name of the card whose checkpoint holds the attachments inside; None when they are trained here.
        reading: Which text it sees.
        prompt_template: The text that stands for the prompt.
        open_words: Whether an unfinished last word is read.
        runtime: What runs it.
    """

    model: str | Composition
    checkpoint: str | None
    reading: Reading
    prompt_template: str | None
    open_words: OpenWords
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Source:
    """What an augmenter's name stands for.

    Args:
        card: The model whose states are read, of a composition its anchor; None when it is unknown.
        composition: The composition, when the name stands for one.
        checkpoint: The checkpoint that holds the composition's attachments; None when they are trained here.
        path: Where the composition is declared.
    """

    card: ModelCard | None
    composition: Composition | None
    checkpoint: Checkpoint | None
    path: str


@dataclass(frozen=True, slots=True)
class Run:
    """One frozen model that runs over one text.

    Args:
        card: The model.
        reader: How it reads.
        is_anchor: Whether its output is the answer.
    """

    card: ModelCard
    reader: Reader
    is_anchor: bool


@dataclass(slots=True)
class Expansion:
    """The runs, edges and problems found so far.

    Args:
        registry: Where names are looked up.
        trail: Cards of the checkpoints that are being unfolded, outermost first.
    """

    registry: Registry
    trail: tuple[str, ...] = ()
    runs: dict[str, Run] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _names: dict[Reader, str] = field(default_factory=dict)
    _checkpoints: dict[str, Checkpoint | None] = field(default_factory=dict)

    def add(self, composition: Composition, path: str) -> None:
        """Unfold the outermost composition; its anchor is the run whose output is the answer."""
        # An anchor is the composition, not the bare model: an augmenter of the same name is a run of its own.
        reader = Reader(composition, None, "stream", None, "wait", "torch")
        self._claim(reader, composition.anchor, composition)
        self._unfold(Source(None, composition, None, path), composition, reader)

    def _unfold(self, place: Source, composition: Composition, reader: Reader) -> None:
        """Add the composition's anchor as a run, and then everything that it reads."""
        path, target = place.path, self._names[reader]
        registry = self._registry_for(place.checkpoint)
        self.problems += check_name(composition, path)
        anchor, problems = look_up(composition.anchor, registry, f"{path}.anchor")
        self.problems += problems
        if anchor is not None:
            self.problems += check_anchor(anchor, f"{path}.anchor")
            if any(takes_heads_of_anchor(augmenter) for augmenter in composition.augmenters):
                self.problems += check_facts(anchor, ("num_heads",), f"{path}.anchor")
            self.runs[target] = Run(anchor, reader, is_anchor=not self.runs)
        if not composition.augmenters:
            self.problems.append(Problem(f"{path}.augmenters", "is empty; an anchor alone needs no composition"))
        new: list[tuple[Source, Reader]] = []
        first: dict[str, int] = {}
        for index, augmenter in enumerate(composition.augmenters):
            at = f"{path}.augmenters[{index}]"
            if first.setdefault(augmenter.key, index) != index:
                earlier = f"got {augmenter.key!r}, which augmenters[{first[augmenter.key]}] already is"
                self.problems.append(Problem(f"{at}.name", f"{earlier}; put all its attachments into one augmenter"))
            source = self._resolve(augmenter, place.checkpoint, at)
            self.problems += check_augmenter(augmenter, source.card, at)
            if source.composition is not None and augmenter.runtime in ("onnx", "remote"):
                got = f"got {augmenter.runtime!r}, but {augmenter.key!r}"
                message = f"{got} is a composition, and compositions run in torch"
                self.problems.append(Problem(f"{at}.runtime", message))
            child = _reader_of(augmenter, source, reader)
            # Names are given before anything is unfolded, so that the outermost augmenters have the short ones.
            if self._claim(child, augmenter.key, composition):
                new.append((source, child))
            edge, problems = plan_edge(
                augmenter, source.card, anchor, source_run=self._names[child], target_run=target, path=at
            )
            self.problems += problems
            if edge is not None and source.card is not None:
                self.problems += check_layers(source.card, edge)
                self.edges.append(edge if place.checkpoint is None else place.checkpoint.trained(edge))
        for source, child in new:
            if source.composition is not None:
                self._unfold(source, source.composition, child)
            elif source.card is not None:
                self.runs[self._names[child]] = Run(source.card, child, is_anchor=False)

    def _registry_for(self, checkpoint: Checkpoint | None) -> Registry:
        return self.registry if checkpoint is None else checkpoint.registry

    def _claim(self, reader: Reader, name: str, parent: Composition) -> bool:
        """Name the reader; return whether it is a new one."""
        if reader in self._names:
            return False
        taken = {module_key(other) for other in self._names.values()}
        candidate, number = name, 1
        while module_key(candidate) in taken:
            candidate = f"{parent.name}/{name}" + (f"-{number}" if number > 1 else "")
            number += 1
        self._names[reader] = candidate
        return True

    def _resolve(self, augmenter: Augmenter, checkpoint: Checkpoint | None, at: str) -> Source:
        """Return what the augmenter's name stands for; a composition's own problems are found when it unfolds."""
        path, registry = f"{at}.name", self._registry_for(checkpoint)
        if isinstance(augmenter.name, Composition):
            card, _ = look_up(augmenter.name.anchor, registry, path)
            return Source(card, augmenter.name, checkpoint, path)
        card, problems = look_up(augmenter.name, registry, path)
        self.problems += problems
        if card is not None:
            card, problems = at_runtime(card, augmenter.runtime, registry, f"{at}.runtime")
            self.problems += problems
        if card is None or card.architecture != COMPOSITION:
            return Source(card, None, None, path)
        inner = self._checkpoint(card, path)
        if inner is None:
            return Source(None, None, None, path)
        card, _ = look_up(inner.composition.anchor, inner.registry, path)
        return Source(card, inner.composition, inner, inner.root)

    def _checkpoint(self, card: ModelCard, path: str) -> Checkpoint | None:
        """Read the composition that was trained into the card's folder, and how its attachments are named there."""
        if card.name in self.trail:
            circle = " -> ".join((*self.trail[self.trail.index(card.name) :], card.name))
            self.problems.append(Problem(path, f"got {card.name!r}, whose composition reads itself: {circle}"))
            return None
        if card.name not in self._checkpoints:
            self._checkpoints[card.name] = self._read_checkpoint(card, path)
        return self._checkpoints[card.name]

    def _read_checkpoint(self, card: ModelCard, path: str) -> Checkpoint | None:
        folder = local_path(card)
        if folder is None:
            message = f"got {card.name!r}, a trained composition, but its folder ({card.source}) is not here"
            self.problems.append(Problem(path, message))
            return None
        root = f"{folder / 'composition.json'}: composition"
        try:
            composition, stored = load_composition(folder), stored_cards(folder)
        except DeclarationError as error:
            self.problems += [Problem(f"{folder}: {problem.path}", problem.message) for problem in error.problems]
            return None
        registry = Registry(self.registry)
        for frozen in stored:
            if frozen.name not in registry:
                registry.add(frozen)
        alone = Expansion(registry, (*self.trail, card.name))
        alone.add(composition, root)
        self.problems += alone.problems
        if alone.problems:
            return None
        keys = {_place(found): found.key for edge in alone.edges for found in edge.attachments}
        return Checkpoint(card.name, composition, root, keys, registry)


def _reader_of(augmenter: Augmenter, source: Source, parent: Reader) -> Reader:
    """Return how the augmenter reads inside its parent: what a parent never sees, its augmenters do not see either."""
    reading: Reading = "prompt" if parent.reading == "prompt" else augmenter.reading
    open_words: OpenWords = augmenter.open_words if reading == "stream" else "wait"
    template = augmenter.prompt_template
    if parent.prompt_template is not None and (source.card is None or source.card.modality == "text"):
        template = (template or "{prompt}").replace("{prompt}", parent.prompt_template)
    if source.composition is not None:
        owner = source.checkpoint.card if source.checkpoint is not None else None
        return Reader(source.composition, owner, reading, template, open_words, "torch")
    runtime: Runtime = source.card.runtime if source.card is not None else "torch"
    return Reader(augmenter.key, None, reading, template, open_words, runtime)
