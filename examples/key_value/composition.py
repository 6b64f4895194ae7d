"""Qwen2.5-Coder adds numbers; the private model knows what the keys are worth; together they add keys."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

composition = Composition(
    name="key-value",
    anchor="qwen2.5-coder-0.5b",
    augmenters=[
        Augmenter(
            "private-prices",
            # The value is in the augmenter's last state at a key's last token. It is written early, where the anchor
            # puts together what a number is, at the key itself: `distance` lets each place prefer what is near.
            attach=at(anchor_layers=[1, 3, 5, 8, 11], augmenter_layers=[1, 1, 1, 1, 1]),
            reading="prompt",
            prompt_visibility="causal",
            positions="distance",
        )
    ],
)
