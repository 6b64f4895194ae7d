"""The README that is written beside a composition's weights."""

from __future__ import annotations

from collections.abc import Mapping

from calm_graph.plan.parts import Plan


def model_card(plan: Plan, num_parameters: Mapping[str, int]) -> str:
    """Describe a composition in the form the hub shows: front matter, then what it is and how to load it.

    Args:
        plan: The validated graph.
        num_parameters: Attachment key -> its parameters.

    Returns:
        Markdown.
    """
    cards = {run.card.name: run.card for run in plan.runs}
    bases = [card.location for card in cards.values() if card.scheme == "hub"]
    total = sum(num_parameters[planned.key] for planned in plan.attachments if planned.trainable)
    lines = [
        "---",
        "library_name: calm_graph",
        "pipeline_tag: text-generation",
        "license: other",
        "tags: [calm, composition]",
        *(["base_model:", *(f"- {base}" for base in bases)] if bases else []),
        "---",
        "",
        f"# {plan.composition.name}",
        "",
        *([plan.composition.description, ""] if plan.composition.description else []),
        f"A CALM composition (arXiv 2401.02412): {total:,} trained parameters that let `{plan.anchor.name}` "
        f"read {', '.join(f'`{run.name}`' for run in plan.runs if not run.is_anchor)}. "
        "The frozen models are not in this repository; their fingerprints are in `composition.json` and are checked "
        "when it is loaded.",
        "",
        "```python",
        "import calm_graph",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{plan.composition.name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{plan.composition.name}")',
        "```",
        "",
        "| frozen model | role | reads | architecture | licence |",
        "|---|---|---|---|---|",
        *(
            f"| {run.card.name} | {'anchor' if run.is_anchor else 'augmenter'} | "
            f"{'' if run.is_anchor else run.reading} | {run.card.architecture} | {run.card.licence} |"
            for run in reversed(plan.runs)
        ),
        "",
        "| from | layer | to | after layer | heads | parameters |",
        "|---|---|---|---|---|---|",
        *(
            f"| {planned.source} | {planned.augmenter_layer} | {planned.target} | {planned.anchor_layer} | "
            f"{planned.num_heads} | {num_parameters[planned.key]:,} |"
            for planned in plan.attachments
        ),
        "",
    ]
    return "\n".join(lines)
