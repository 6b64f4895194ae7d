"""The plan of an anchor that reads nobody: what a composition is compared with, through the same code."""

from __future__ import annotations

from calm_graph.declare.composition import Composition
from calm_graph.plan.parts import Plan, PlannedRun
from registry import ModelCard


def plan_alone(card: ModelCard, *, name: str | None = None) -> Plan:
    """Return a plan with nothing in it but its anchor; a declaration may not say that, because it composes nothing.

    Args:
        card: A causal language model, with its facts.
        name: What the model is called; None takes the card's name.

    Returns:
        A plan that `build_model` takes.
    """
    assert card.num_layers is not None  # the registry fills in the facts of every card it gives
    anchor = PlannedRun(
        name=card.name,
        card=card,
        taps=(),
        num_blocks=card.num_layers,
        reading="stream",
        prompt_template=None,
        open_words="wait",
        runtime="torch",
        is_anchor=True,
    )
    return Plan(
        composition=Composition(name=name or card.name, anchor=card.name),
        runs=(anchor,),
        edges=(),
        parallel=((anchor.name,),),
        last_use={},
    )
