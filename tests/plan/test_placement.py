from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_graph.declare.composition import At, Augmenter, Every, at, every
from calm_graph.plan.placement import places, spread

depths = st.integers(1, 130)


def pairs(rule: Every | At, augmenter_depth: int, anchor_depth: int) -> list[tuple[int | None, int | None]]:
    found, problems = places(
        Augmenter("a", attach=rule), augmenter_depth=augmenter_depth, anchor_depth=anchor_depth, path="p"
    )
    assert not problems
    return [(place.augmenter_layer, place.anchor_layer) for place in found]


def test_every_fourth_layer_is_the_papers_placement() -> None:
    assert pairs(every(4), 12, 24) == [(3, 7), (7, 15), (11, 23)]
    assert pairs(every(4), 18, 30) == [(3, 7), (7, 14), (11, 22), (15, 29)]


def test_the_layers_beyond_the_last_whole_step_are_left_alone() -> None:
    assert pairs(every(5), 9, 10) == [(4, 9)]


def test_at_spreads_the_augmenters_layers_unless_they_are_named() -> None:
    assert pairs(at(anchor_layers=[2, 5, 7]), 12, 10) == [(3, 2), (7, 5), (11, 7)]
    assert pairs(at(anchor_layers=[2, 5], augmenter_layers=[0, 1]), 12, 10) == [(0, 2), (1, 5)]


@given(depths, depths, st.data())
def test_every_stays_in_range_and_meets_in_order(augmenter_depth: int, anchor_depth: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, augmenter_depth))
    found = pairs(every(step), augmenter_depth, anchor_depth)
    taps, layers = [tap for tap, _ in found], [layer for _, layer in found]
    assert len(found) == len(set(found)) == augmenter_depth // step
    assert taps == [step * (index + 1) - 1 for index in range(len(taps))]
    assert layers == sorted(layer for layer in layers if layer is not None)
    assert layers[-1] == anchor_depth - 1 and min(layer for layer in layers if layer is not None) >= 0


@given(st.integers(1, 60), depths)
def test_spread_is_even(count: int, num_layers: int) -> None:
    layers = spread(count, num_layers)
    gaps = [after - before for before, after in zip((-1, *layers), layers, strict=False)]
    assert layers[-1] == num_layers - 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("depth", [None, 12])
def test_without_the_anchors_depth_the_taps_are_still_known(depth: int | None) -> None:
    found, problems = places(Augmenter("a"), augmenter_depth=depth, anchor_depth=None, path="p")
    assert not problems
    assert [(place.augmenter_layer, place.anchor_layer) for place in found] == [
        (tap, None) for tap in ([] if depth is None else [3, 7, 11])
    ]
