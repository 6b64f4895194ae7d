"""All attachments between one augmenter and one anchor: checked, and with everything their modules are built from."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter
from calm_graph.errors import Problem
from calm_graph.plan.checks import check_heads
from calm_graph.plan.parts import Edge, PlannedAttachment, module_key
from calm_graph.plan.placement import Place, places
from registry import ModelCard


def plan_edge(
    augmenter: Augmenter,
    source: ModelCard | None,
    anchor: ModelCard | None,
    *,
    source_run: str,
    target_run: str,
    path: str,
) -> tuple[Edge | None, tuple[Problem, ...]]:
    """Return the edge that an augmenter declares.

    Args:
        augmenter: The declaration.
        source: The model that is read; None when it is unknown.
        anchor: The model that reads; None when it is unknown.
        source_run: Name of the run that is read.
        target_run: Name of the run that reads.
        path: Where the augmenter was declared: `composition.augmenters[0]`.

    Returns:
        The edge, None when something is wrong or a fact is missing; and the problems of layers and heads. Missing facts
        are reported with the models.
    """
    source_depth = source.num_layers if source is not None else None
    anchor_depth = anchor.num_layers if anchor is not None else None
    found, problems = places(augmenter, augmenter_depth=source_depth, anchor_depth=anchor_depth, path=path)
    for place in found:
        problems += _check_range(
            place.augmenter_layer, source_depth, f"augmenter {augmenter.key!r}", place.augmenter_path
        )
        if anchor is not None:
            problems += _check_range(place.anchor_layer, anchor_depth, f"anchor {anchor.name!r}", place.anchor_path)
    problems += _check_duplicates(found)
    if anchor is not None and anchor.hidden_size is not None:
        for where, heads in _declared_heads(augmenter, found, anchor, path).items():
            problems += check_heads(heads, anchor.hidden_size, anchor.name, augmenter.positions, where)
    if problems or source is None or anchor is None or source.hidden_size is None or anchor.hidden_size is None:
        return None, problems
    read, added = module_key(source_run), module_key(target_run)
    attachments = []
    for place in found:
        own_heads = augmenter.num_heads if place.num_heads is None else place.num_heads
        num_heads = anchor.num_heads if own_heads is None else own_heads
        if place.augmenter_layer is None or place.anchor_layer is None or num_heads is None:
            return None, problems
        attachments.append(
            PlannedAttachment(
                key=f"{read}@{place.augmenter_layer}_to_{added}@{place.anchor_layer}",
                source=source_run,
                target=target_run,
                augmenter_layer=place.augmenter_layer,
                anchor_layer=place.anchor_layer,
                source_width=source.hidden_size,
                target_width=anchor.hidden_size,
                num_heads=num_heads,
                head_dim=anchor.hidden_size // num_heads,
                norms=augmenter.norms,
                gate=augmenter.gate,
                positions=augmenter.positions,
                writes=augmenter.writes,
                first_token=augmenter.first_token,
                path=place.path,
            )
        )
    attachments.sort(key=lambda found: (found.anchor_layer, found.augmenter_layer))
    edge = Edge(
        source=source_run,
        target=target_run,
        scale=augmenter.scale,
        prompt_visibility=augmenter.prompt_visibility,
        attachments=tuple(attachments),
        if_unavailable=augmenter.if_unavailable,
    )
    return edge, problems


def takes_heads_of_anchor(augmenter: Augmenter) -> bool:
    """Return whether one of the augmenter's attachments is declared without a number of heads."""
    if augmenter.num_heads is not None:
        return False
    return not isinstance(augmenter.attach, tuple) or any(place.num_heads is None for place in augmenter.attach)


def _declared_heads(augmenter: Augmenter, found: tuple[Place, ...], anchor: ModelCard, path: str) -> dict[str, int]:
    """Return path -> number of heads, each where it was or could be declared."""
    heads = {f"{place.path}.num_heads": place.num_heads for place in found if place.num_heads is not None}
    if augmenter.num_heads is not None:
        heads[f"{path}.num_heads"] = augmenter.num_heads
    elif anchor.num_heads is not None and takes_heads_of_anchor(augmenter):
        heads[f"{path}.num_heads"] = anchor.num_heads
    return heads


def _check_range(layer: int | None, depth: int | None, who: str, path: str) -> tuple[Problem, ...]:
    if layer is None or depth is None or 0 <= layer < depth:
        return ()
    return (Problem(path, f"got {layer}, but {who} has layers 0..{depth - 1}"),)


def _check_duplicates(found: tuple[Place, ...]) -> tuple[Problem, ...]:
    problems = []
    first: dict[tuple[int, int], Place] = {}
    for place in found:
        if place.augmenter_layer is None or place.anchor_layer is None:
            continue
        layers = (place.augmenter_layer, place.anchor_layer)
        if layers in first:
            same = f"augmenter layer {layers[0]} to anchor layer {layers[1]}"
            earlier = first[layers].anchor_path.removesuffix(".anchor_layer").rpartition(".")[2]
            problems.append(Problem(place.path, f"got {same} again; {earlier} already is that attachment"))
        first.setdefault(layers, place)
    return tuple(problems)
