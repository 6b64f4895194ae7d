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
                # The price stands in the last state of the key's own token. The anchor's first block reads one token
                # at a time, so after it the value of a word can still be written at the word.
                attach=at(anchor_layers=[0], augmenter_layers=[1]),
                reading="prompt",
                prompt_visibility="causal",
                positions="distance",
            )
            for department in departments
        ],
    )


garden = compose("demo-garden", "garden")
kitchen = compose("demo-kitchen", "kitchen")
both = compose("demo-both", "garden", "kitchen")
