"""Where the attachments of one augmenter sit: placement rules made into pairs of layers."""

from __future__ import annotations

from dataclasses import dataclass

from calm_graph.declare.composition import At, Augmenter, Every
from calm_graph.errors import Problem


@dataclass(frozen=True, slots=True)
class Place:
    """One attachment's layers, and where each was declared.

    Args:
        augmenter_layer: The layer that is read; None while the augmenter's depth is unknown.
        anchor_layer: The layer that it is added to; None while the anchor's depth is unknown.
        num_heads: The attachment's own number of heads.
        path: Where the attachment was declared.
        augmenter_path: Where its augmenter layer was declared.
        anchor_path: Where its anchor layer was declared.
    """

    augmenter_layer: int | None
    anchor_layer: int | None
    num_heads: int | None
    path: str
    augmenter_path: str
    anchor_path: str


def spread(count: int, num_layers: int) -> tuple[int, ...]:
    """Return `count` layers spread evenly over a model, the last layer among them (paper section 3.1: gap N/n).

    Where the gap is no whole number each layer is rounded up, so that a short model under many attachments gives
    layers 0, 0, 1, 1 rather than one before its first.

    Args:
        count: How many layers to choose, from 1.
        num_layers: How many layers the model has.

    Returns:
        Layers in ascending order, 0-based.
    """
    return tuple(-(-(index + 1) * num_layers // count) - 1 for index in range(count))


def places(
    augmenter: Augmenter, *, augmenter_depth: int | None, anchor_depth: int | None, path: str
) -> tuple[tuple[Place, ...], tuple[Problem, ...]]:
    """Return the layers of each attachment of one augmenter, and what is wrong with the rule.

    Args:
        augmenter: The declared augmenter.
        augmenter_depth: Its number of layers; None when unknown, which is reported elsewhere.
        anchor_depth: The anchor's number of layers; None when unknown.
        path: Where the augmenter was declared: `composition.augmenters[0]`.

    Returns:
        The places, in the order of the declaration, and the problems. Ranges are not checked here.
    """
    rule, path = augmenter.attach, f"{path}.attach"
    if isinstance(rule, Every):
        return _every(rule.step, augmenter, augmenter_depth, anchor_depth, path)
    if isinstance(rule, At):
        return _at(rule, augmenter, augmenter_depth, path)
    if not rule:
        return (), (Problem(path, "has no attachments; use every(4) or list some, or leave the augmenter out"),)
    listed = []
    for index, attachment in enumerate(rule):
        at = f"{path}[{index}]"
        listed.append(
            Place(
                attachment.augmenter_layer,
                attachment.anchor_layer,
                attachment.num_heads,
                at,
                f"{at}.augmenter_layer",
                f"{at}.anchor_layer",
            )
        )
    return tuple(listed), ()


def _every(
    step: int, augmenter: Augmenter, augmenter_depth: int | None, anchor_depth: int | None, path: str
) -> tuple[tuple[Place, ...], tuple[Problem, ...]]:
    if step < 1:
        return (), (Problem(f"{path}.step", f"got {step}, but it counts layers and must be 1 or more"),)
    if augmenter_depth is None:
        return (), ()
    if step > augmenter_depth:
        reason = f"got {step}, but augmenter {augmenter.key!r} has only {augmenter_depth} layers"
        return (), (Problem(f"{path}.step", f"{reason}; use every({augmenter_depth}) or less"),)
    taps = range(step - 1, augmenter_depth, step)
    layers: tuple[int | None, ...] = (None,) * len(taps) if anchor_depth is None else spread(len(taps), anchor_depth)
    return tuple(Place(tap, layer, None, path, path, path) for tap, layer in zip(taps, layers, strict=True)), ()


def _at(
    rule: At, augmenter: Augmenter, augmenter_depth: int | None, path: str
) -> tuple[tuple[Place, ...], tuple[Problem, ...]]:
    count = len(rule.anchor_layers)
    if not count:
        return (), (Problem(f"{path}.anchor_layers", "names no layers; name some, or leave the augmenter out"),)
    taps: tuple[int | None, ...]
    if rule.augmenter_layers is not None:
        if len(rule.augmenter_layers) != count:
            message = f"got {len(rule.augmenter_layers)} layers, but anchor_layers has {count}; they meet one by one"
            return (), (Problem(f"{path}.augmenter_layers", message),)
        taps = rule.augmenter_layers
    elif augmenter_depth is None:
        taps = (None,) * count
    else:
        taps = spread(count, augmenter_depth)
    tap_path = f"{path}.augmenter_layers"
    found = [
        Place(
            tap, layer, None, f"{path}.anchor_layers[{index}]", f"{tap_path}[{index}]", f"{path}.anchor_layers[{index}]"
        )
        for index, (tap, layer) in enumerate(zip(taps, rule.anchor_layers, strict=True))
    ]
    return tuple(found), ()
