"""Where the columns of a plan's picture go: the anchor in the middle, what it reads on both sides."""

from __future__ import annotations

from dataclasses import dataclass

from calm_graph.plan.parts import Plan, PlannedRun

ANCHOR_WIDTH = 150.0
COLUMN_WIDTH = 104.0
GAP = 140.0
HEADER = 56.0
SPACE = 30.0
MARGIN = 36.0
LETTER_WIDTH = 7.4
"""Width of an average bold letter of a header at 13 px; text is not measured, only given room."""


HEIGHT_OF_NUMBERS = 10.5
"""Least height of a layer that its number can be written in."""


@dataclass(frozen=True, slots=True)
class Column:
    """A model as a column of layers, layer 0 at the bottom. Lengths are in SVG units.

    Args:
        run: The model.
        side: -1 left of the anchor, 1 right of it, 0 the anchor.
        x: Left edge.
        y: Upper edge of the last layer.
        width: Of the column.
        layer_height: Of one layer.
    """

    run: PlannedRun
    side: int
    x: float
    y: float
    width: float
    layer_height: float

    @property
    def height(self) -> float:
        """Height of all layers."""
        return self.layer_height * self.run.num_layers

    def layer_y(self, layer: int) -> float:
        """Upper edge of a layer."""
        return self.y + (self.run.num_layers - 1 - layer) * self.layer_height

    def middle(self, layer: int) -> float:
        """Height at which arrows leave or reach a layer."""
        return self.layer_y(layer) + self.layer_height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """All columns, and the size of the drawing that they need.

    Args:
        columns: Run name -> column.
        width: Of the drawing.
        height: Of the drawing without title and legend; y counts from its upper edge.
    """

    columns: dict[str, Column]
    width: float
    height: float


def place(plan: Plan) -> Layout:
    """Place the runs: those that the anchor reads right beside it, what they read one column further out.

    Args:
        plan: What to draw.

    Returns:
        The layout.
    """
    distance, parent = _distances(plan)
    sides = _sides(plan, distance, parent)
    stacks: dict[tuple[int, int], list[PlannedRun]] = {}
    for run in plan.runs[:-1]:
        stacks.setdefault((sides[run.name], distance[run.name]), []).append(run)
    for (_, level), stack in stacks.items():
        if level > 1:  # beside what reads them
            stack.sort(key=lambda run: [other.name for other in plan.runs].index(parent[run.name]))
    heights = {key: sum(map(_block_height, stack)) - SPACE for key, stack in stacks.items()}
    anchor = plan.anchor
    room = max(max(heights.values()) - HEADER, 400)
    anchor_layer = max(min(room / anchor.num_layers, 22), HEIGHT_OF_NUMBERS)
    height = max(*heights.values(), HEADER + anchor_layer * anchor.num_layers)
    margins = {side: _margin(plan, sides, distance, side) for side in (-1, 1)}
    levels = {side: max((level for own, level in stacks if own == side), default=0) for side in (-1, 1)}
    left = margins[-1] + levels[-1] * (COLUMN_WIDTH + GAP)
    anchor_y = HEADER + (height - HEADER - anchor_layer * anchor.num_layers) / 2
    columns = {anchor.name: Column(anchor, 0, left, anchor_y, ANCHOR_WIDTH, anchor_layer)}
    for (side, level), stack in stacks.items():
        outwards = level * (COLUMN_WIDTH + GAP)
        x = left - outwards if side < 0 else left + ANCHOR_WIDTH - COLUMN_WIDTH + outwards
        y = (height - heights[side, level]) / 2
        for run in stack:
            columns[run.name] = Column(run, side, x, y + HEADER, COLUMN_WIDTH, layer_height(run))
            y += _block_height(run)
    width = left + ANCHOR_WIDTH + levels[1] * (COLUMN_WIDTH + GAP) + margins[1]
    return Layout(columns, width, height)


def layer_height(run: PlannedRun) -> float:
    """Return the height of an augmenter's layers: low ones where there are many."""
    return min(max(290 / run.num_layers, 4.0), 17.0)


def _block_height(run: PlannedRun) -> float:
    return HEADER + layer_height(run) * run.num_layers + SPACE


def _distances(plan: Plan) -> tuple[dict[str, int], dict[str, str]]:
    """Return for each run how many columns it is away from the anchor, and the run that puts it there."""
    distance, parent = {plan.anchor.name: 0}, {}
    for run in reversed(plan.runs[:-1]):
        targets = [edge.target for edge in plan.edges if edge.source == run.name]
        parent[run.name] = max(targets, key=lambda name: distance[name])
        distance[run.name] = distance[parent[run.name]] + 1
    return distance, parent


def _sides(plan: Plan, distance: dict[str, int], parent: dict[str, str]) -> dict[str, int]:
    """Return each run's side: the emptier one for what the anchor reads itself, for others that of their reader."""
    sides: dict[str, int] = {}
    filled = {-1: 0.0, 1: 0.0}
    for run in sorted(plan.runs[:-1], key=lambda run: distance[run.name]):
        if distance[run.name] == 1:
            side = -1 if filled[-1] <= filled[1] else 1
            filled[side] += _block_height(run)
            sides[run.name] = side
        else:
            sides[run.name] = sides[parent[run.name]]
    return sides


def _margin(plan: Plan, sides: dict[str, int], distance: dict[str, int], side: int) -> float:
    """Return the room outside the outermost columns; headers grow outwards from a column's inner edge."""
    own = [run.name for run in plan.runs[:-1] if sides[run.name] == side]
    overhang = [
        len(name) * LETTER_WIDTH - COLUMN_WIDTH - (max(map(distance.__getitem__, own)) - distance[name]) * GAP
        for name in own
    ]
    overhang.append(190 - COLUMN_WIDTH if own else len(plan.anchor.name) * LETTER_WIDTH / 2 - ANCHOR_WIDTH / 2 + 40)
    return MARGIN + max(0.0, *overhang)
