"""The plan of a composition: what runs, in which order, how deep, and what reads what. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import networkx as nx

from calm_graph.declare.composition import Composition
from calm_graph.errors import DeclarationError, Problem
from calm_graph.plan.expand import Expansion, Run
from calm_graph.plan.parts import Edge, Plan, PlannedAttachment, PlannedRun
from registry import Registry
from registry import registry as default_registry

__all__ = ["Edge", "Plan", "PlannedAttachment", "PlannedRun", "make_plan"]


def make_plan(composition: Composition | Mapping[str, object], *, registry: Registry | None = None) -> Plan:
    """Check a composition and work out its graph.

    Args:
        composition: What was declared, or its fields as a mapping.
        registry: Where names are looked up; None takes the default one.

    Returns:
        The plan. Equal declarations and cards give equal plans.

    Raises:
        DeclarationError: Something is wrong; all problems are listed, each with its path.
    """
    if not isinstance(composition, Composition):
        composition = Composition.parse(composition)
    expansion = Expansion(default_registry if registry is None else registry)
    expansion.add(composition, "composition")
    if expansion.problems:
        problems = sorted(dict.fromkeys(expansion.problems), key=_place_in_file)
        raise DeclarationError(problems, where=f"composition {composition.name!r}")
    graph = _graph(expansion.runs, expansion.edges)
    order = tuple(nx.lexicographical_topological_sort(graph, key=list(graph).index))
    edges, skipped = _without_unread(order, expansion.edges)
    taps = _taps(edges)
    read = graph.subgraph(name for name in graph if name in taps or expansion.runs[name].is_anchor)
    order = tuple(name for name in order if name in read)
    return Plan(
        composition=composition,
        runs=tuple(_planned(name, expansion.runs[name], taps.get(name, ())) for name in order),
        edges=edges,
        parallel=_parallel(read, order),
        last_use=_last_use(order, edges),
        skipped=skipped,
    )


def _place_in_file(problem: Problem) -> tuple[bool, list[int]]:
    """Return what sorts problems as they are declared; those inside checkpoints come last."""
    root, _, rest = problem.path.partition(".")
    return root != "composition", [int(index) for index in re.findall(r"\[(\d+)\]", rest)]


def _graph(runs: Mapping[str, Run], edges: Iterable[Edge]) -> nx.DiGraph:
    """Return the runs and who reads whom. Unfolding has already refused circles, so it has none."""
    graph = nx.DiGraph()
    graph.add_nodes_from(runs)
    graph.add_edges_from((edge.source, edge.target) for edge in edges)
    return graph


def _without_unread(order: tuple[str, ...], edges: Iterable[Edge]) -> tuple[tuple[Edge, ...], tuple[Problem, ...]]:
    """Drop what no later layer reads: a nested composition only runs up to the last of its layers that is tapped.

    Args:
        order: Run names in topological order, the anchor last.
        edges: All edges.

    Returns:
        The edges that matter, by target and source in that order, and a note for each attachment left out.
    """
    into: dict[str, list[Edge]] = {name: [] for name in order}
    for edge in edges:
        into[edge.target].append(edge)
    position = {name: index for index, name in enumerate(order)}
    depth: dict[str, int | None] = {order[-1]: None}  # layers that run; None is all of them
    kept: list[Edge] = []
    skipped: list[Problem] = []
    for target in reversed(order):
        limit = depth.get(target, 0)
        for edge in sorted(into[target], key=lambda edge: position[edge.source], reverse=True):
            live: tuple[PlannedAttachment, ...] = edge.attachments
            unread: tuple[PlannedAttachment, ...] = ()
            if limit is not None:
                live = tuple(found for found in edge.attachments if found.anchor_layer < limit)
                unread = tuple(found for found in edge.attachments if found.anchor_layer >= limit)
            skipped += [_unread(found, limit) for found in reversed(unread)]
            if live:
                kept.append(replace(edge, attachments=live) if unread else edge)
                deepest = 1 + max(found.augmenter_layer for found in live)
                depth[edge.source] = max(deepest, depth.get(edge.source) or 0)
    return tuple(reversed(kept)), tuple(reversed(skipped))


def _unread(attachment: PlannedAttachment, limit: int | None) -> Problem:
    deepest = f"its last layer that is read is {limit - 1}" if limit else "none of its layers is read"
    reason = f"left out: it adds to layer {attachment.anchor_layer} of {attachment.target!r}, but {deepest}"
    return Problem(attachment.path, reason)


def _taps(edges: Iterable[Edge]) -> dict[str, tuple[int, ...]]:
    """Return run name -> the layers of it that are read, ascending."""
    layers: dict[str, set[int]] = {}
    for edge in edges:
        layers.setdefault(edge.source, set()).update(found.augmenter_layer for found in edge.attachments)
    return {name: tuple(sorted(found)) for name, found in layers.items()}


def _planned(name: str, run: Run, taps: tuple[int, ...]) -> PlannedRun:
    assert run.card.num_layers is not None  # missing facts are problems, and there were none
    return PlannedRun(
        name=name,
        card=run.card,
        taps=taps,
        num_blocks=run.card.num_layers if run.is_anchor else taps[-1] + 1,
        reading=run.reader.reading,
        prompt_template=run.reader.prompt_template,
        open_words=run.reader.open_words,
        runtime=run.reader.runtime,
        is_anchor=run.is_anchor,
    )


def _parallel(graph: nx.DiGraph, order: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return groups of runs, each group as early as what it reads allows."""
    position = {name: index for index, name in enumerate(order)}
    return tuple(tuple(sorted(group, key=position.__getitem__)) for group in nx.topological_generations(graph))


def _last_use(order: tuple[str, ...], edges: Iterable[Edge]) -> dict[tuple[str, int], str]:
    """Return (run, layer) -> the attachment that reads it last, when runs go in order and layer by layer."""
    position = {name: index for index, name in enumerate(order)}
    uses = [found for edge in edges for found in edge.attachments]
    uses.sort(key=lambda found: (position[found.target], found.anchor_layer, position[found.source]))
    return {(found.source, found.augmenter_layer): found.key for found in uses}
