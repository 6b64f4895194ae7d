"""The demo's compositions: the anchor with one department's prices, with the other's, and with both."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

ANCHOR = "demo-arithmetic"


def compose(name: str, *departments: str) -> Composition:
    """Declare the anchor with the augmenters of these departments.

    Args:
        name: Of the composition.
        departments: `garden`, `kitchen`.

    Returns:
        The declaration.
    """
    return Composition(
        name=name,
        anchor=ANCHOR,
        augmenters=[
            Augmenter(
                f"demo-prices-{department}",
                # The price stands in the last state of the key's own token; the anchor's first blocks read words.
                attach=at(anchor_layers=[0, 1, 2], augmenter_layers=[1, 1, 1]),
                reading="prompt",
                positions="distance",
            )
            for department in departments
        ],
    )


garden = compose("demo-garden", "garden")
kitchen = compose("demo-kitchen", "kitchen")
both = compose("demo-both", "garden", "kitchen")
