"""Qwen2.5-Coder (0.5 B, good at numbers) reads Gemma 3 (270 M, 140 languages), as both go through the same text."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

composition = Composition(
    name="maths",
    anchor="qwen2.5-coder-0.5b",
    augmenters=[
        Augmenter(
            "gemma3-270m",
            # From Gemma's middle on, where a question has been understood, into the anchor's first three quarters.
            attach=at(anchor_layers=[3, 8, 13, 18], augmenter_layers=[9, 12, 15, 17]),
            reading="stream",
            positions="distance",
            open_words="read",
            writes="relative",
            first_token="spare",
        )
    ],
)
