"""What a user writes: compositions, in Python or as JSON; nothing here imports torch."""

from __future__ import annotations

from calm_graph.declare.composition import At, Attachment, Augmenter, Composition, Every, at, every

__all__ = ["At", "Attachment", "Augmenter", "Composition", "Every", "at", "every"]
