"""A plan as aligned text: what runs, what is attached where, and what it costs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from calm_graph.plan.estimate import BYTES_BF16, BYTES_FP32, Estimate, estimate
from calm_graph.plan.parts import Edge, Plan, PlannedRun

_WIDTH_OF_LAYERS = 44


def table(plan: Plan) -> str:
    """Return the plan as a table: a line for each run, and for each edge its layers, heads and parameters.

    Args:
        plan: What to show.

    Returns:
        Lines without trailing white space, joined by newlines.
    """
    cost = estimate(plan)
    anchor = plan.anchor
    num_attachments = len(plan.attachments)
    title = (
        f"{plan.composition.name}: {anchor.name} reads {_count(len(plan.into(anchor.name)), 'model')} through "
        f"{_count(num_attachments, 'attachment')} with {short(cost.num_attachment_parameters)} parameters, "
        f"{cost.share_of_anchor:.1%} of the anchor's {short(cost.anchor_parameters)}"
    )
    runs = aligned(
        ("run", "architecture", "width", "blocks that run", "reads", "runtime"),
        [_run_row(run) for run in plan.runs],
    )
    edges = aligned(
        ("from", "to", "layers", "heads", "scale", "prompt", "parameters", "of anchor"),
        [row for edge in plan.edges for row in _edge_rows(edge, cost)],
    )
    notes = [f"note: {note}" for note in plan.skipped]
    return "\n".join([title, "", *runs, "", *edges, *([""] if notes else []), *notes])


def cost_table(plan: Plan, cost: Estimate) -> str:
    """Return what the plan costs as a table: FLOPs for each token, and bytes.

    Args:
        plan: What runs.
        cost: Its estimate.
    """
    named = {run.name: cost.runs[run.name] for run in plan.runs}
    named |= {f"{edge.source} -> {edge.target}": cost.edges[edge.source, edge.target] for edge in plan.edges}
    rows = [
        (name, found.flops_per_prompt_token, found.flops_per_generated_token, found.num_parameters)
        for name, found in named.items()
    ]
    num_parameters = cost.num_frozen_parameters + cost.num_attachment_parameters
    rows.append(("all", cost.flops_per_prompt_token, cost.flops_per_generated_token, num_parameters))
    flops = aligned(
        ("FLOPs", "a prompt token", "a new token", "parameters"),
        [(name, *(short(value) if value else "-" for value in values)) for name, *values in rows],
    )
    sizes = aligned(
        ("bytes", "fp32", "bf16"),
        [
            (name, *(size(values * width) for width in (BYTES_FP32, BYTES_BF16)))
            for name, values in (
                ("attachments (trained)", cost.num_trainable_parameters),
                ("frozen models, as deep as they run", cost.num_frozen_parameters),
                ("cache for each token of a request", cost.cache_values_per_token),
            )
        ],
    )
    return "\n".join([f"at {cost.num_context_tokens} tokens already read", *flops, "", *sizes])


def short(number: float) -> str:
    """Return a count with three digits and its unit: 134.5 M."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= factor:
            return f"{number / factor:.{1 if number >= 10 * factor else 2}f}{unit}"
    return f"{number:g}"


def size(num_bytes: int) -> str:
    """Return a number of bytes with its decimal unit: 13.6 MB."""
    text = short(num_bytes)
    return f"{text}B" if " " in text else f"{text} B"


def layer_pairs(edge: Edge) -> str:
    """Return the layers of an edge's attachments: `3->7 7->14`."""
    return " ".join(f"{found.augmenter_layer}->{found.anchor_layer}" for found in edge.attachments)


def _run_row(run: PlannedRun) -> tuple[str, ...]:
    reads: str = "anchor" if run.is_anchor else run.reading
    if run.prompt_template is not None:
        reads += " through a template"
    if run.open_words == "read":
        reads += ", open words too"
    depth = f"{run.num_blocks} of {run.num_layers}"
    return (run.name, run.card.architecture or "?", str(run.hidden_size), depth, reads, run.runtime)


def _edge_rows(edge: Edge, cost: Estimate) -> list[tuple[str, ...]]:
    """Return the edge's row, and rows below it with what did not fit of its layers."""
    lines = textwrap.wrap(layer_pairs(edge), _WIDTH_OF_LAYERS)
    heads = ",".join(str(heads) for heads in sorted({found.num_heads for found in edge.attachments}))
    parameters = cost.edges[edge.source, edge.target].num_parameters
    rest = (
        heads,
        f"{edge.scale:g}",
        edge.prompt_visibility,
        short(parameters),
        f"{parameters / cost.anchor_parameters:.1%}",
    )
    first = (edge.source, edge.target, lines[0], *rest)
    return [first, *(("", "", line, *("",) * len(rest)) for line in lines[1:])]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows under the header, columns padded; columns of numbers are aligned to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    numeric = [all(row[column][:1] in ("", "-", *"0123456789") for row in rows) for column in range(len(header))]
    numeric = [
        is_numeric and name not in ("layers", "blocks that run")
        for is_numeric, name in zip(numeric, header, strict=True)
    ]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, numeric, strict=True)
        return (
            "  "
            + "  ".join(f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in cells).rstrip()
        )

    return [line(header), line(["─" * width for width in widths]), *map(line, rows)]


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], *, styles: Sequence[str | None]) -> None:
    """Print a table: with colours on a terminal, as aligned text elsewhere.

    Args:
        header: Names of the columns; the first, and those without a name, stand on the left.
        rows: Cells.
        styles: Of each row on a terminal, in the words of rich.
    """
    if not sys.stdout.isatty():
        print("\n".join(aligned(header, rows)))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, header_style="bold")
    for index, name in enumerate(header):
        shown.add_column(name, justify="left" if index == 0 or not name else "right", overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        shown.add_row(*row, style=style)
    Console().print(shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
