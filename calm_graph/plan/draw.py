"""A plan to look at: a table, a Mermaid graph in Markdown, or an SVG picture."""

from __future__ import annotations

from pathlib import Path

from calm_graph.errors import InputError
from calm_graph.plan.estimate import estimate
from calm_graph.plan.parts import Plan
from calm_graph.plan.svg import colours, svg
from calm_graph.plan.tables import layer_pairs, short, table

__all__ = ["colours", "markdown", "mermaid", "svg", "table", "write"]


def mermaid(plan: Plan) -> str:
    """Return the plan as a Mermaid flowchart: a box for each run, an arrow for each edge with its layers."""
    keys = {run.name: f"run{index}" for index, run in enumerate(plan.runs)}
    lines = ["flowchart LR"]
    for run in plan.runs:
        reads = "anchor" if run.is_anchor else f"reads the {run.reading}"
        label = (
            f"<b>{run.name}</b><br/>{reads}<br/>{run.num_blocks} of {run.num_layers} blocks, width {run.hidden_size}"
        )
        opening, closing = ("[[", "]]") if run.is_anchor else ("[", "]")
        lines.append(f'    {keys[run.name]}{opening}"{label}"{closing}')
    for edge in plan.edges:
        arrow = "==>" if any(found.trainable for found in edge.attachments) else "-.->"
        pairs = layer_pairs(edge).split()
        shown = " ".join(pairs if len(pairs) <= 8 else [*pairs[:4], "...", *pairs[-3:]]).replace("->", "→")
        lines.append(f'    {keys[edge.source]} {arrow}|"{shown}"| {keys[edge.target]}')
    return "\n".join(lines)


def markdown(plan: Plan) -> str:
    """Return the plan as a Markdown page: what it is, the Mermaid graph and the table."""
    cost = estimate(plan)
    summary = (
        f"{len(plan.attachments)} attachments, {short(cost.num_attachment_parameters)} parameters "
        f"({cost.share_of_anchor:.1%} of the anchor). Layers count from 0."
    )
    about = [plan.composition.description, ""] if plan.composition.description else []
    parts = [f"# {plan.composition.name}", "", *about, summary, "", "```mermaid", mermaid(plan), "```", ""]
    return "\n".join([*parts, "```text", table(plan), "```", ""])


def write(plan: Plan, path: str | Path) -> Path:
    """Write the plan's picture.

    Args:
        plan: What to draw.
        path: Where: `.svg` for the picture, `.md` for Markdown with Mermaid, `.mmd` for Mermaid, `.txt` for the table.

    Returns:
        The path.

    Raises:
        InputError: The ending is another one.
    """
    path = Path(path)
    makers = {".svg": svg, ".md": markdown, ".mmd": mermaid, ".txt": table}
    if path.suffix not in makers:
        raise InputError(f"{path}: got ending {path.suffix!r}, but {', '.join(makers)} can be drawn")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = makers[path.suffix](plan)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return path
