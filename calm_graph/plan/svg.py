"""The picture of a plan: models as columns of layers, attachments as arrows from tap to layer."""

from __future__ import annotations

from html import escape

from calm_graph.plan.estimate import estimate
from calm_graph.plan.layout import HEIGHT_OF_NUMBERS, Column, Layout, place
from calm_graph.plan.parts import Plan, PlannedAttachment, PlannedRun
from calm_graph.plan.tables import short

COLOURS = ("#2f6fd0", "#d9660b", "#1f9467", "#b23a75", "#7656cc", "#a88600", "#12899b", "#8a5636")
INK, SOFT, PALE, ANCHOR = "#1f2933", "#69758a", "#c9d1dc", "#5b6b82"
EDGE, TITLE_HEIGHT, LEGEND_HEIGHT = 32.0, 92.0, 84.0
_MAX_NAME = 34
_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_STYLE = f"""
text {{ font-family: {_FONT}; fill: {INK}; }}
.title {{ font-size: 21px; font-weight: 650; }}
.soft {{ font-size: 12px; fill: {SOFT}; }}
.name {{ font-size: 13px; font-weight: 650; }}
.small {{ font-size: 10.5px; fill: {SOFT}; }}
.layer {{ font-size: 9px; font-weight: 600; }}
""".strip()


def svg(plan: Plan) -> str:
    """Return the plan as an SVG drawing that needs no fonts or styles from elsewhere.

    The anchor stands in the middle, layer 0 at the bottom; what it reads stands beside it. Each model has its colour,
    and its arrows too. Blocks that do not run are hollow.

    Args:
        plan: What to draw.

    Returns:
        The text of the SVG file.
    """
    layout, paints = place(plan), colours(plan)
    legend, legend_width = _legend(plan)
    width, height = max(layout.width, legend_width + 2 * EDGE), TITLE_HEIGHT + layout.height + LEGEND_HEIGHT
    shift = (width - layout.width) / 2
    label = f"{plan.composition.name}: {plan.anchor.name} reads {', '.join(run.name for run in plan.runs[:-1])}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">',
            f"<style>{_STYLE}</style>",
            _markers(paints),
            f'<rect x="0.5" y="0.5" width="{width - 1:.1f}" height="{height - 1:.1f}" rx="14" '
            'fill="#fff" stroke="#e3e8ef"/>',
            *_title(plan),
            f'<g transform="translate({shift:.1f} {TITLE_HEIGHT})">',
            *_arrows(plan, layout, paints),
            *(line for column in layout.columns.values() for line in _column(column, plan, paints)),
            "</g>",
            f'<path d="M{EDGE:g} {height - 62:.1f} H{width - EDGE:.1f}" stroke="#e3e8ef"/>',
            f'<g transform="translate({EDGE:g} {height - 34:.1f})">',
            *legend,
            "</g>",
            "</svg>",
            "",
        ]
    )


def colours(plan: Plan) -> dict[str, str]:
    """Return the colour of each model of a plan, as #rrggbb."""
    found = {run.name: COLOURS[index % len(COLOURS)] for index, run in enumerate(plan.runs[:-1])}
    found[plan.anchor.name] = ANCHOR
    return found


def _title(plan: Plan) -> list[str]:
    cost = estimate(plan)
    num_attachments = len(plan.attachments)
    slower = cost.flops_per_generated_token / cost.runs[plan.anchor.name].flops_per_generated_token
    facts = (
        f"{num_attachments} attachment{'' if num_attachments == 1 else 's'}  ·  "
        f"{short(cost.num_attachment_parameters)} parameters, {cost.share_of_anchor:.1%} of the anchor  ·  "
        f"{slower:.2f}× its FLOPs for a new token"
    )
    return [_text(EDGE, 42, plan.composition.name, "title"), _text(EDGE, 64, facts, "soft")]


def _markers(paints: dict[str, str]) -> str:
    heads = [
        f'<marker id="head-{colour[1:]}" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0.5 0.8 L7.5 4 L0.5 7.2 Z" fill="{colour}"/></marker>'
        for colour in dict.fromkeys(paints.values())
    ]
    return f"<defs>{''.join(heads)}</defs>"


def _arrows(plan: Plan, layout: Layout, paints: dict[str, str]) -> list[str]:
    lines = []
    for found in plan.attachments:
        source, target = layout.columns[found.source], layout.columns[found.target]
        colour = paints[found.source]
        dashes = "" if found.trainable else ' stroke-dasharray="5 3"'
        lines.append(
            f'<path data-augmenter="{escape(found.source)}" d="{_curve(found, source, target)}" fill="none" '
            f'stroke="{colour}" stroke-width="1.6" '
            f'stroke-opacity="0.85"{dashes} marker-end="url(#head-{colour[1:]})">'
            f"<title>{escape(_tooltip(found))}</title></path>"
        )
    return lines


def _curve(found: PlannedAttachment, source: Column, target: Column) -> str:
    """Return a curve that leaves and arrives level, on the sides of the columns that face each other."""
    rightwards = source.x < target.x
    x0 = source.x + source.width if rightwards else source.x
    x1 = target.x - 1 if rightwards else target.x + target.width + 1
    y0, y1 = source.middle(found.augmenter_layer), target.middle(found.anchor_layer)
    bend = abs(x1 - x0) * 0.5 * (1 if rightwards else -1)
    return f"M{x0:.1f} {y0:.1f} C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"


def _column(column: Column, plan: Plan, paints: dict[str, str]) -> list[str]:
    run, colour = column.run, paints[column.run.name]
    reached = {found.anchor_layer for edge in plan.into(run.name) for found in edge.attachments}
    lines = _header(column, colour)
    gap = 1.6 if column.layer_height >= 8 else 0.8
    marked = sorted(reached | set(run.taps) | {0, run.num_layers - 1})
    numbered = _not_crowded(marked, reached | set(run.taps), column.layer_height)
    for layer in range(run.num_layers):
        is_tap = layer in run.taps
        paint = f'fill="{colour}"' if is_tap else f'fill="{colour}" fill-opacity="0.16"'
        if layer >= run.num_blocks:
            paint = f'fill="none" stroke="{PALE}" stroke-dasharray="2.5 2"'
        elif layer in reached and not is_tap:
            paint = f'fill="{colour}" fill-opacity="0.42"'
        y, height = column.layer_y(layer) + gap / 2, column.layer_height - gap
        lines.append(
            f'<rect x="{column.x:.1f}" y="{y:.1f}" width="{column.width:.1f}" height="{height:.1f}" '
            f'rx="{min(3.0, height / 2):.1f}" {paint}/>'
        )
        if layer in numbered:
            ink = "#fff" if is_tap else INK if layer < run.num_blocks else SOFT
            lines.append(_number(column, layer, ink))
    return lines


def _number(column: Column, layer: int, ink: str) -> str:
    """Return a layer's number: in the layer, or on its outer side where layers are too low to write in."""
    if column.layer_height >= HEIGHT_OF_NUMBERS:
        x, anchor = column.x + column.width / 2, "middle"
    elif column.side < 0:
        x, anchor, ink = column.x - 5, "end", SOFT
    else:
        x, anchor, ink = column.x + column.width + 5, "start", SOFT
    y = column.middle(layer) + 3.1
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="layer" style="fill:{ink}">{layer}</text>'


def _not_crowded(layers: list[int], first: set[int], layer_height: float) -> set[int]:
    """Return those layers whose numbers have room, the taps and attachments before the ends."""
    chosen: set[int] = set()
    for layer in sorted(layers, key=lambda layer: (layer not in first, layer)):
        if all(abs(layer - other) * layer_height >= HEIGHT_OF_NUMBERS for other in chosen):
            chosen.add(layer)
    return chosen


def _header(column: Column, colour: str) -> list[str]:
    run = column.run
    name = run.name if len(run.name) <= _MAX_NAME else run.name[: _MAX_NAME - 1] + "…"
    facts = f"{run.card.architecture or run.card.modality} · {run.num_layers} × {run.hidden_size}"
    x, anchor = {
        -1: (column.x + column.width, "end"),
        0: (column.x + column.width / 2, "middle"),
        1: (column.x, "start"),
    }[column.side]
    return [
        _text(x, column.y - 38, name, "name", anchor=anchor, fill=INK if run.is_anchor else colour),
        _text(x, column.y - 23, facts, "small", anchor=anchor),
        _text(x, column.y - 9, _role(run), "small", anchor=anchor),
    ]


def _role(run: PlannedRun) -> str:
    if run.is_anchor:
        return "anchor: its output is the answer"
    reads = "reads the prompt once" if run.reading == "prompt" else "reads every token"
    return reads + (f" · {run.runtime}" if run.runtime != "torch" else "")


def _legend(plan: Plan) -> tuple[list[str], float]:
    """Return the key to cells and arrows, only what the drawing has, in one row; and the row's width."""
    colour = COLOURS[0]
    hollow = f'fill="none" stroke="{PALE}" stroke-dasharray="2.5 2"'
    entries = [
        (_cell(f'fill="{colour}"'), "layer that is read"),
        (_cell(f'fill="{ANCHOR}" fill-opacity="0.42"'), "layer that is added to"),
        (_cell(f'fill="{colour}" fill-opacity="0.16"'), "other layers that run"),
    ]
    if any(run.num_blocks < run.num_layers for run in plan.runs):
        entries.append((_cell(hollow), "does not run"))
    line = (
        f'<path d="M0 -3.5 h24" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#head-{colour[1:]})"'
    )
    if any(found.trainable for found in plan.attachments):
        entries.append((f"{line}/>", "attachment, trained"))
    if not all(found.trainable for found in plan.attachments):
        entries.append((f'{line} stroke-dasharray="5 3"/>', "attachment from a checkpoint"))
    lines, x = [], 0.0
    for mark, label in entries:
        lines.append(f'<g transform="translate({x:.1f} 0)">{mark}{_text(30, 0, label, "small")}</g>')
        x += 50 + 5.6 * len(label)
    return lines, x


def _cell(paint: str) -> str:
    return f'<rect x="0" y="-9" width="22" height="11" rx="3" {paint}/>'


def _tooltip(found: PlannedAttachment) -> str:
    return (
        f"{found.source} layer {found.augmenter_layer} to {found.target} layer {found.anchor_layer}: "
        f"{found.source_width} to {found.target_width}, {found.num_heads} heads"
    )


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start", fill: str | None = None) -> str:
    paint = f' style="fill:{fill}"' if fill else ""
    place = f'x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}"'
    # The white outline keeps text readable where an arrow passes behind it. It is a text of its own because not every
    # program that shows SVG knows paint-order.
    halo = (
        f'<text {place} style="fill:#fff" stroke="#fff" stroke-width="4" stroke-linejoin="round">{escape(text)}</text>'
    )
    return f"{halo}<text {place}{paint}>{escape(text)}</text>"
