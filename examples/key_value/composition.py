"""Qwen2.5-Coder adds numbers; the private model knows what the keys are worth; together they add keys."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

composition = Composition(
    name="key-value",
    anchor="qwen2.5-coder-0.5b",
    augmenters=[
        Augmenter(
            "private-prices",
            # The value is in the augmenter's last state at a key's last token. It is written over the key's own tokens,
            # in the first blocks, before the anchor puts digits together; `full`, because the first digit belongs at
            # the token before the last, and `distance`, because both belong to the nearest key.
            attach=at(anchor_layers=[0, 1, 2], augmenter_layers=[1, 1, 1]),
            reading="prompt",
            positions="distance",
        )
    ],
)
