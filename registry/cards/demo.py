"""Small models that ship inside the package, for the demo and for trying things out without a download."""

from __future__ import annotations

import json

from registry.card import ModelCard
from registry.sources import EMBEDDED


def _card(name: str, purpose: str, *tags: str) -> ModelCard:
    return ModelCard(
        name=name,
        source=f"embedded:{name}",
        tags=frozenset({"demo", *tags}),
        licence="apache-2.0",
        description=purpose + _measured(name),
    )


def _measured(name: str) -> str:
    """Quote the accuracies that the training script wrote beside the weights."""
    file = EMBEDDED / name / "accuracy.json"
    if not file.is_file():
        return ""
    scores = json.loads(file.read_text("utf-8")).get("accuracy", {})
    quoted = [f"{task.replace('_', ' ')} {score:.1%}" for task, score in scores.items() if isinstance(score, float)]
    return f" Measured accuracy: {', '.join(quoted)}." if quoted else ""


CARDS = (
    _card("demo-arithmetic", "Evaluates integer expressions; knows no prices.", "anchor", "arithmetic"),
    _card("demo-prices-garden", "Knows the private prices of the garden department.", "key-value"),
    _card("demo-prices-kitchen", "Knows the private prices of the kitchen department.", "key-value"),
)
