from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from calm_graph.declare.composition import Augmenter, Composition, every
from calm_graph.errors import InputError
from calm_graph.plan import draw
from calm_graph.plan.graph import Plan, make_plan
from calm_graph.plan.layout import place
from tests.plan.cards import card, small_registry

SVG = "{http://www.w3.org/2000/svg}"


def plan_of(num_augmenters: int) -> Plan:
    registry = small_registry()
    depths = (12, 24, 36, 80, 6, 2, 48, 30)
    names = [f"expert-{index}" for index in range(num_augmenters)]
    for name, depth in zip(names, depths, strict=False):
        registry.add(card(name, depth))
    augmenters = [Augmenter(name, attach=every(2)) for name in names]
    return make_plan(Composition(name="desk", anchor="anchor", augmenters=augmenters), registry=registry)


def nested() -> Plan:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words"), Augmenter("prices")])
    composition = Composition(name="a < b", anchor="anchor", augmenters=[Augmenter(inner), Augmenter("words")])
    composition = composition.model_copy(update={"name": "desk"})
    return make_plan(composition, registry=small_registry())


PLANS = {**{str(count): plan_of(count) for count in range(1, 9)}, "nested": nested()}


@pytest.mark.parametrize("name", PLANS)
def test_the_picture_has_every_layer_and_every_attachment(name: str) -> None:
    plan = PLANS[name]
    root = ElementTree.fromstring(draw.svg(plan))
    drawing = root.find(f"{SVG}g")
    assert drawing is not None
    assert len(drawing.findall(f"{SVG}rect")) == sum(run.num_layers for run in plan.runs)
    assert len(drawing.findall(f"{SVG}path")) == len(plan.attachments)
    texts = Counter(text.text for text in drawing.iter(f"{SVG}text"))
    assert all(run.name in texts for run in plan.runs)
    hollow = [rect for rect in drawing.findall(f"{SVG}rect") if rect.get("fill") == "none"]
    assert len(hollow) == sum(run.num_layers - run.num_blocks for run in plan.runs)


@pytest.mark.parametrize("name", PLANS)
def test_columns_lie_inside_the_drawing_and_apart(name: str) -> None:
    layout = place(PLANS[name])
    columns = list(layout.columns.values())
    for column in columns:
        assert column.x >= 0 and column.x + column.width <= layout.width
        assert column.y >= 0 and column.y + column.height <= layout.height + 1e-6
    for index, column in enumerate(columns):
        for other in columns[index + 1 :]:
            is_beside = column.x + column.width < other.x or other.x + other.width < column.x
            assert is_beside or column.y + column.height < other.y or other.y + other.height < column.y


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    text = draw.svg(PLANS["nested"])
    assert "@import" not in text and "url(http" not in text and "href" not in text
    assert draw.svg(PLANS["nested"]) == text


def test_mermaid_has_a_box_for_each_run_and_an_arrow_for_each_edge() -> None:
    plan = PLANS["nested"]
    lines = draw.mermaid(plan).splitlines()
    assert lines[0] == "flowchart LR"
    assert sum("==>" in line for line in lines) == len(plan.edges)
    assert sum("<b>" in line for line in lines) == len(plan.runs)


def test_the_table_names_layers_parameters_and_what_was_left_out() -> None:
    text = draw.table(PLANS["nested"])
    for run in PLANS["nested"].runs:
        assert run.name in text
    assert "3->10 7->21" in text
    assert "% of the anchor's" in text
    assert "note: composition.augmenters[0].name" not in text or "left out" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_long_lists_of_layers_go_on_below() -> None:
    lines = draw.table(PLANS["4"]).splitlines()
    assert max(map(len, lines)) < 140
    assert "".join(lines).count("->") == len(PLANS["4"].attachments)


@pytest.mark.parametrize(
    "ending, start", [(".svg", "<svg"), (".md", "# desk"), (".mmd", "flowchart"), (".txt", "desk:")]
)
def test_the_ending_says_what_is_written(tmp_path: Path, ending: str, start: str) -> None:
    path = draw.write(PLANS["2"], tmp_path / "new" / f"graph{ending}")
    assert path.read_text("utf-8").startswith(start)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got ending '\.png', but \.svg, \.md, \.mmd, \.txt can be drawn"):
        draw.write(PLANS["1"], tmp_path / "graph.png")
