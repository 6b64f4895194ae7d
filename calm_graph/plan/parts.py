"""What a plan is made of: runs of frozen models, the edges between them, and the attachments on each edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from calm_graph.declare.composition import (
    Composition,
    FirstToken,
    Gate,
    IfUnavailable,
    Norms,
    OpenWords,
    Positions,
    PromptVisibility,
    Reading,
    Runtime,
    Writes,
)
from calm_graph.errors import Problem
from registry import ModelCard


def module_key(name: str) -> str:
    """Return a run's name as `torch.nn.ModuleDict` and safetensors can use it: without dots."""
    return name.replace(".", "_")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedAttachment:
    """One attachment with everything its module is built from.

    Args:
        key: Its name in the model and in checkpoints: `gemma3-270m@3_to_smollm2@7`.
        source: Name of the run that is read.
        target: Name of the run that reads.
        augmenter_layer: The source's layer that is read, 0-based.
        anchor_layer: The target's layer after which the output is added, 0-based. A tap of the target at this layer
            reads the state with the output added.
        source_width: Width C of the states that are read.
        target_width: Width D of the target's states.
        num_heads: Attention heads.
        head_dim: Width of one head; num_heads * head_dim is the target's width.
        norms: Whether states are normalised before they are read.
        gate: Whether a trained gate multiplies the output.
        positions: Whether queries and keys are rotated.
        writes: Whether the output is multiplied by the size of the stream it is added to.
        first_token: Whether something is added at the first token, too.
        path: Where it was declared.
        trainable: False when it comes, trained, from a checkpoint.
        checkpoint: Name of the card whose folder holds its weights, when it comes from a checkpoint.
        checkpoint_key: Its name in that folder's file.
    """

    key: str
    source: str
    target: str
    augmenter_layer: int
    anchor_layer: int
    source_width: int
    target_width: int
    num_heads: int
    head_dim: int
    norms: Norms
    gate: Gate
    positions: Positions
    writes: Writes
    first_token: FirstToken
    path: str
    trainable: bool = True
    checkpoint: str | None = None
    checkpoint_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One frozen model that runs over one text.

    Args:
        name: Unique in the plan: the card's name, the nested composition's, or `composition/name` where that is taken.
        card: The frozen model.
        taps: Layers whose output is read, ascending; none for the anchor.
        num_blocks: How many blocks must run: up to the last tap; all of the anchor's.
        reading: Which text it sees.
        prompt_template: The text that stands for the prompt, with one `{prompt}`; None is the prompt itself.
        open_words: Whether the last word of a growing text is read before it is known to have ended.
        runtime: What runs it.
        is_anchor: Whether its output is the answer.
    """

    name: str
    card: ModelCard
    taps: tuple[int, ...]
    num_blocks: int
    reading: Reading
    prompt_template: str | None
    open_words: OpenWords
    runtime: Runtime
    is_anchor: bool

    @property
    def module_key(self) -> str:
        """The name as module containers can use it: without dots."""
        return module_key(self.name)

    @property
    def num_layers(self) -> int:
        """Number of blocks of the whole model."""
        assert self.card.num_layers is not None  # a plan is only made of cards that say so
        return self.card.num_layers

    @property
    def hidden_size(self) -> int:
        """Width of its states."""
        assert self.card.hidden_size is not None  # as above
        return self.card.hidden_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """All attachments from one run to another.

    Args:
        source: Name of the run that is read.
        target: Name of the run that reads.
        scale: Factor on what the attachments add; 0 is off.
        prompt_visibility: How much of the source's prompt each of the target's positions may see.
        attachments: By the target's layer, ascending.
        if_unavailable: What happens to requests when the service that runs the source does not answer.
    """

    source: str
    target: str
    scale: float
    prompt_visibility: PromptVisibility
    attachments: tuple[PlannedAttachment, ...]
    if_unavailable: IfUnavailable = "fail"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The validated graph, ready to build.

    Args:
        composition: What was declared.
        runs: In an order in which each run comes after those it reads; the anchor is last. The same declaration always
            gives the same order.
        edges: By target in the order of runs, then by source.
        parallel: Groups of run names; the runs of a group may go at the same time, after the groups before it.
        last_use: (run, layer) -> key of the attachment after which the state may be dropped.
        skipped: What was declared but is left out, with the reason.
    """

    composition: Composition
    runs: tuple[PlannedRun, ...]
    edges: tuple[Edge, ...]
    parallel: tuple[tuple[str, ...], ...]
    last_use: Mapping[tuple[str, int], str]
    skipped: tuple[Problem, ...] = field(default=())

    @property
    def anchor(self) -> PlannedRun:
        """The run whose output is the answer."""
        return self.runs[-1]

    @property
    def attachments(self) -> tuple[PlannedAttachment, ...]:
        """All attachments, edge by edge."""
        return tuple(attachment for edge in self.edges for attachment in edge.attachments)

    @property
    def read_by_anchor(self) -> dict[str, tuple[int, ...]]:
        """Run name -> its layers that the anchor's own attachments read, ascending; without what is switched off."""
        layers: dict[str, set[int]] = {}
        for edge in self.into(self.anchor.name):
            if edge.scale != 0:
                layers.setdefault(edge.source, set()).update(found.augmenter_layer for found in edge.attachments)
        return {name: tuple(sorted(found)) for name, found in layers.items()}

    @property
    def first_attached_layer(self) -> int:
        """The lowest anchor layer that is written to; the output of its block is a function of the text alone."""
        edges = self.into(self.anchor.name)
        return min(found.anchor_layer for edge in edges for found in edge.attachments)

    @property
    def told_layers(self) -> range:
        """The anchor's layers after which states may be compared with told ones: all attachments are below."""
        last = max(found.anchor_layer for edge in self.into(self.anchor.name) for found in edge.attachments)
        return range(last, self.anchor.num_layers)

    def run(self, name: str) -> PlannedRun:
        """Return the run of this name.

        Raises:
            KeyError: The plan has no such run.
        """
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(f"got {name!r}, but the plan has the runs {', '.join(run.name for run in self.runs)}")

    def into(self, name: str) -> tuple[Edge, ...]:
        """Return the edges whose target is the run of this name."""
        return tuple(edge for edge in self.edges if edge.target == name)

    def out_of(self, name: str) -> tuple[Edge, ...]:
        """Return the edges whose source is the run of this name."""
        return tuple(edge for edge in self.edges if edge.source == name)

    def __iter__(self) -> Iterator[PlannedRun]:
        return iter(self.runs)

    def __repr__(self) -> str:
        num_attachments = sum(len(edge.attachments) for edge in self.edges)
        names = ", ".join(run.name for run in self.runs[:-1])
        return f"Plan({self.composition.name!r}: {names} -> {self.anchor.name}; {num_attachments} attachments)"
