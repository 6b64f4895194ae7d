"""SmolLM2 (English only) reads Gemma 3 (140 languages), as both go through the source and each new word."""

from __future__ import annotations

from calm_graph.declare.composition import Augmenter, Composition, at

composition = Composition(
    name="low-resource",
    anchor="smollm2-135m-instruct",
    augmenters=[
        Augmenter(
            "gemma3-270m",
            # Over all of the anchor: more is learnt from a row than with late layers, in a longer step. Late layers of
            # Gemma, as what it would say next is in its last blocks.
            attach=at(anchor_layers=[2, 8, 14, 20, 27], augmenter_layers=[11, 11, 14, 16, 17]),
            # At the end of each word, not a word later.
            open_words="read",
            reading="stream",
            positions="distance",
            # The anchor's stream is fifteen times as large at its end as at its beginning.
            writes="relative",
            # At the first token it is sixty times as large as at others, and attention rests on that.
            first_token="spare",
        )
    ],
)
