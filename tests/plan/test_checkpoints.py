"""Trained compositions as augmenters: their folder holds the declaration, their card names the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calm_graph.declare.composition import Attachment, Augmenter, Composition, every
from calm_graph.errors import DeclarationError
from calm_graph.plan.graph import make_plan
from registry import ModelCard, Registry
from tests.plan.cards import card, small_registry


def save(folder: Path, composition: Composition, *cards: ModelCard, **more: Any) -> ModelCard:
    """Write what the plan reads of a checkpoint, and return its card."""
    folder.mkdir()
    description = {"schema_version": 1, "composition": composition.model_dump(mode="json")}
    description["models"] = {stored.name: stored.model_dump(mode="json") for stored in cards}
    (folder / "composition.json").write_text(json.dumps(description | more))
    (folder / "config.json").write_text(json.dumps({"model_type": "calm_graph"}))
    return ModelCard(name=folder.name, source=f"folder:{folder}", architecture="calm_graph")


def with_cards(*cards: ModelCard) -> Registry:
    registry = small_registry()
    for added in cards:
        registry.add(added)
    return registry


HELPER = Composition(
    name="helper",
    anchor="code",
    augmenters=[
        Augmenter("words", attach=every(4)),
        Augmenter("prices", attach=[Attachment(augmenter_layer=5, anchor_layer=2)]),
    ],
)


def test_a_checkpoint_unfolds_into_runs_whose_attachments_are_not_trained(tmp_path: Path) -> None:
    registry = with_cards(save(tmp_path / "trained", HELPER))
    desk = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("trained"), Augmenter("words")])
    plan = make_plan(desk, registry=registry)
    assert [run.name for run in plan.runs] == ["prices", "words", "trained", "anchor"]
    assert plan.run("trained").card.name == "code"
    alone = {found.key for found in make_plan(HELPER, registry=registry).attachments}
    inner = [found for edge in plan.into("trained") for found in edge.attachments]
    assert {(found.trainable, found.checkpoint) for found in inner} == {(False, "trained")}
    assert {found.checkpoint_key for found in inner} == alone
    assert {found.key for found in inner} == {key.replace("to_code", "to_trained") for key in alone}
    assert all(
        found.trainable and found.checkpoint is None for edge in plan.into("anchor") for found in edge.attachments
    )


def test_a_checkpoint_inside_a_checkpoint_keeps_its_own_file(tmp_path: Path) -> None:
    first = save(tmp_path / "first", HELPER)
    outer = Composition(name="outer", anchor="words", augmenters=[Augmenter("first")])
    registry = with_cards(first, save(tmp_path / "second", outer))
    plan = make_plan(Composition(name="desk", anchor="anchor", augmenters=[Augmenter("second")]), registry=registry)
    owners = {(found.target, found.checkpoint) for found in plan.attachments}
    assert owners == {("first", "first"), ("second", "second"), ("anchor", None)}
    (edge,) = plan.into("second")
    assert {found.checkpoint_key for found in edge.attachments} == {
        f"first@{found.augmenter_layer}_to_words@{found.anchor_layer}" for found in edge.attachments
    }


def test_a_nested_composition_inside_a_checkpoint_is_its_own_too(tmp_path: Path) -> None:
    outer = Composition(name="outer", anchor="words", augmenters=[Augmenter(HELPER)])
    registry = with_cards(save(tmp_path / "trained", outer))
    desk = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("trained"), Augmenter(HELPER)])
    plan = make_plan(desk, registry=registry)
    # The trained helper and the new one are equal declarations but hold different weights.
    assert {run.name for run in plan.runs} == {"words", "prices", "outer/helper", "trained", "helper", "anchor"}
    assert {found.trainable for edge in plan.into("helper") for found in edge.attachments} == {True}
    assert {found.checkpoint for edge in plan.into("outer/helper") for found in edge.attachments} == {"trained"}


def test_models_that_only_the_checkpoint_knows_come_from_its_description(tmp_path: Path) -> None:
    private = card("private", 12, 64)
    helper = Composition(name="helper", anchor="code", augmenters=[Augmenter("private")])
    registry = with_cards(save(tmp_path / "trained", helper, private))
    desk = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("trained")])
    assert make_plan(desk, registry=registry).run("private").card == private
    assert "private" not in registry


def test_compositions_that_read_each_other_are_a_named_circle(tmp_path: Path) -> None:
    def reads(name: str) -> Composition:
        return Composition(name="inner", anchor="code", augmenters=[Augmenter(name)])

    registry = with_cards(save(tmp_path / "a", reads("b")), save(tmp_path / "b", reads("a")))
    desk = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("a")])
    with pytest.raises(DeclarationError, match="got 'a', whose composition reads itself: a -> b -> a"):
        make_plan(desk, registry=registry)


def test_problems_inside_a_checkpoint_name_its_file(tmp_path: Path) -> None:
    helper = Composition(name="helper", anchor="code", augmenters=[Augmenter("prises")])
    registry = with_cards(save(tmp_path / "trained", helper))
    desk = Composition(
        name="desk", anchor="anchor", augmenters=[Augmenter("trained"), Augmenter("prices", scale=float("nan"))]
    )
    with pytest.raises(DeclarationError) as caught:
        make_plan(desk, registry=registry)
    assert [problem.path for problem in caught.value.problems] == [
        "composition.augmenters[1].scale",
        f"{tmp_path / 'trained' / 'composition.json'}: composition.augmenters[0].name",
    ]


def test_a_checkpoint_that_is_gone_or_damaged_is_a_problem(tmp_path: Path) -> None:
    gone = ModelCard(name="gone", source=f"folder:{tmp_path / 'gone'}", architecture="calm_graph")
    damaged = save(tmp_path / "damaged", HELPER)
    (tmp_path / "damaged" / "composition.json").write_text("{")
    desk = Composition(name="desk", anchor="anchor", augmenters=[Augmenter("gone"), Augmenter("damaged")])
    with pytest.raises(DeclarationError) as caught:
        make_plan(desk, registry=with_cards(gone, damaged))
    assert "got 'gone', a trained composition, but its folder" in str(caught.value)
    assert "not readable as JSON" in str(caught.value)
    assert len(caught.value.problems) == 2


def test_a_checkpoint_is_no_anchor(tmp_path: Path) -> None:
    registry = with_cards(save(tmp_path / "trained", HELPER))
    with pytest.raises(DeclarationError, match=r"composition\.anchor: got 'trained', which is a trained composition"):
        make_plan(Composition(name="desk", anchor="trained", augmenters=[Augmenter("words")]), registry=registry)
