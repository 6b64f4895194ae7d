"""SmolLM2 (135 M parameters, mostly English) reads Qwen2.5-Coder (0.5 B), as both go through the same code."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

composition = Composition(
    name="code",
    anchor="smollm2-135m-instruct",
    augmenters=[
        Augmenter(
            "qwen2.5-coder-0.5b",
            # As in examples/low_resource: all over the anchor, late in the augmenter, and each word at its end.
            attach=at(anchor_layers=[2, 8, 14, 20, 27], augmenter_layers=[14, 14, 18, 21, 23]),
            reading="stream",
            positions="distance",
            open_words="read",
            writes="relative",
            first_token="spare",
        )
    ],
)
