"""Every mistake that a declaration can hold, each found with its path, and all of them at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from calm_graph.declare.composition import Attachment, Augmenter, Composition, at, every
from calm_graph.errors import DeclarationError
from calm_graph.plan.graph import make_plan
from registry import Registry
from tests.plan.cards import card, small_registry


def problems(*augmenters: Augmenter, anchor: str = "anchor", registry: Registry | None = None) -> list[str]:
    composition = Composition(name="desk", anchor=anchor, augmenters=augmenters)
    with pytest.raises(DeclarationError) as caught:
        make_plan(composition, registry=registry or small_registry())
    return [str(problem) for problem in caught.value.problems]


def place(augmenter_layer: int, anchor_layer: int, **more: Any) -> Attachment:
    return Attachment(augmenter_layer=augmenter_layer, anchor_layer=anchor_layer, **more)


AT = "composition.augmenters[0]"
CASES = {
    "unknown augmenter": (
        Augmenter("prises"),
        f"{AT}.name: got 'prises', which the registry does not know; nearest: 'prices'",
    ),
    "anchor layer too high": (
        Augmenter("prices", attach=[place(1, 2), place(1, 26)]),
        f"{AT}.attach[1].anchor_layer: got 26, but anchor 'anchor' has layers 0..21",
    ),
    "anchor layer negative": (
        Augmenter("prices", attach=[place(1, -1)]),
        f"{AT}.attach[0].anchor_layer: got -1, but anchor 'anchor' has layers 0..21",
    ),
    "augmenter layer too high": (
        Augmenter("prices", attach=[place(12, 2)]),
        f"{AT}.attach[0].augmenter_layer: got 12, but augmenter 'prices' has layers 0..11",
    ),
    "augmenter layer negative": (
        Augmenter("prices", attach=[place(-2, 2)]),
        f"{AT}.attach[0].augmenter_layer: got -2, but augmenter 'prices' has layers 0..11",
    ),
    "at: anchor layer too high": (
        Augmenter("prices", attach=at(anchor_layers=[3, 22])),
        f"{AT}.attach.anchor_layers[1]: got 22, but anchor 'anchor' has layers 0..21",
    ),
    "at: augmenter layer too high": (
        Augmenter("prices", attach=at(anchor_layers=[3], augmenter_layers=[12])),
        f"{AT}.attach.augmenter_layers[0]: got 12, but augmenter 'prices' has layers 0..11",
    ),
    "at: lengths differ": (
        Augmenter("prices", attach=at(anchor_layers=[3, 4], augmenter_layers=[1])),
        f"{AT}.attach.augmenter_layers: got 1 layers, but anchor_layers has 2; they meet one by one",
    ),
    "at: empty": (
        Augmenter("prices", attach=at(anchor_layers=[])),
        f"{AT}.attach.anchor_layers: names no layers; name some, or leave the augmenter out",
    ),
    "duplicate attachment": (
        Augmenter("prices", attach=[place(1, 2), place(3, 2), place(1, 2)]),
        f"{AT}.attach[2]: got augmenter layer 1 to anchor layer 2 again; attach[0] already is that attachment",
    ),
    "no attachments": (
        Augmenter("prices", attach=[]),
        f"{AT}.attach: has no attachments; use every(4) or list some, or leave the augmenter out",
    ),
    "step too large": (
        Augmenter("prices", attach=every(13)),
        f"{AT}.attach.step: got 13, but augmenter 'prices' has only 12 layers; use every(12) or less",
    ),
    "step zero": (
        Augmenter("prices", attach=every(0)),
        f"{AT}.attach.step: got 0, but it counts layers and must be 1 or more",
    ),
    "heads do not divide": (
        Augmenter("prices", num_heads=7),
        f"{AT}.num_heads: got 7, which does not divide the width 96 of 'anchor'; 4, 6, 8 do",
    ),
    "heads of one attachment do not divide": (
        Augmenter("prices", attach=[place(1, 2, num_heads=5)]),
        f"{AT}.attach[0].num_heads: got 5, which does not divide the width 96 of 'anchor'; 3, 4, 6 do",
    ),
    "no heads": (Augmenter("prices", num_heads=0), f"{AT}.num_heads: got 0, but an attachment has 1 head or more"),
    "odd rotary heads": (
        Augmenter("prices", num_heads=32, positions="rotary"),
        f"{AT}.num_heads: got 32: heads of width 3, but rotary positions need an even width",
    ),
    "bidirectional stream": (
        Augmenter("encoder"),
        f"{AT}.reading: got 'stream', but 'encoder' is not causal: each of its states depends on all of its text; "
        "use reading='prompt'",
    ),
    "bidirectional causal": (
        Augmenter("encoder", reading="prompt", prompt_visibility="causal"),
        f"{AT}.prompt_visibility: got 'causal', but 'encoder' is not causal: each of its states depends on all of its "
        "text; use 'full'",
    ),
    "image stream": (
        Augmenter("eyes"),
        f"{AT}.reading: got 'stream', but 'eyes' reads image, not text; use reading='prompt'",
    ),
    "image causal": (
        Augmenter("eyes", reading="prompt", prompt_visibility="causal"),
        f"{AT}.prompt_visibility: got 'causal', but 'eyes' reads image, not text; use 'full'",
    ),
    "image template": (
        Augmenter("eyes", reading="prompt", prompt_template="{prompt}"),
        f"{AT}.prompt_template: is given, but 'eyes' reads image, not text; leave it out",
    ),
    "image rotary": (
        Augmenter("eyes", reading="prompt", positions="rotary"),
        f"{AT}.positions: got 'rotary', but 'eyes' reads image, not text; use 'none'",
    ),
    "template without the prompt": (
        Augmenter("prices", prompt_template="Look up: "),
        f"{AT}.prompt_template: got 'Look up: ', which has {{prompt}} 0 times; write {{prompt}} once, "
        "where the text of the request goes",
    ),
    "template with the prompt twice": (
        Augmenter("prices", prompt_template="{prompt}{prompt}"),
        f"{AT}.prompt_template: got '{{prompt}}{{prompt}}', which has {{prompt}} 2 times; write {{prompt}} once, "
        "where the text of the request goes",
    ),
    "template with a typo": (
        Augmenter("prices", prompt_template="{promt}"),
        f"{AT}.prompt_template: got {{promt}} in '{{promt}}', but {{prompt}} is the only field; "
        "did you mean {prompt}?",
    ),
    "template with another field": (
        Augmenter("prices", prompt_template="{prompt} {user}"),
        f"{AT}.prompt_template: got {{user}} in '{{prompt}} {{user}}', but {{prompt}} is the only field",
    ),
    "scale not a number": (
        Augmenter("prices", scale=float("nan")),
        f"{AT}.scale: got nan, but a finite number is needed; 0 is off",
    ),
    "scale infinite": (
        Augmenter("prices", scale=float("inf")),
        f"{AT}.scale: got inf, but a finite number is needed; 0 is off",
    ),
    "no export": (
        Augmenter("words", runtime="onnx"),
        f"{AT}.runtime: got 'onnx', but the registry has no export of 'words'; make one "
        "(calm-graph export words --layers ... --out DIR) and add it (--registry DIR)",
    ),
    "several exports": (
        Augmenter("code", runtime="onnx"),
        f"{AT}.runtime: got 'onnx', but 'code' has several exports: 'code-onnx-fp32', 'code-onnx-int8'; "
        "name one of them",
    ),
    "torch for an export": (
        Augmenter("prices-onnx-int8", runtime="torch"),
        f"{AT}.runtime: got 'torch', but 'prices-onnx-int8' is an ONNX export of 'prices'; name that",
    ),
    "layer that was not exported": (
        Augmenter("prices", runtime="onnx", attach=[place(3, 1), place(5, 2)]),
        f"{AT}.attach[1]: reads layer 5, but the ONNX export of 'prices' has layers 3, 7, 11; "
        "read one of them, or export again",
    ),
    "exported for prompts": (
        Augmenter("code-onnx-fp32", attach=[place(3, 1)]),
        f"{AT}.reading: got 'stream', but 'code-onnx-fp32' was exported for prompts; "
        "use reading='prompt', or export again with --reading stream",
    ),
    "composition in onnx": (
        Augmenter(Composition(name="inner", anchor="code", augmenters=[Augmenter("words")]), runtime="onnx"),
        f"{AT}.runtime: got 'onnx', but 'inner' is a composition, and compositions run in torch",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_found_where_it_is(name: str) -> None:
    augmenter, message = CASES[name]
    assert problems(augmenter) == [message]


@pytest.mark.parametrize(
    "anchor, message",
    [
        ("anchr", "got 'anchr', which the registry does not know; nearest: 'anchor'"),
        (
            "encoder",
            "got 'encoder', which is not causal, but an anchor is a causal language model; its positions see "
            "later text; use it as an augmenter with reading='prompt'",
        ),
        ("eyes", "got 'eyes', which reads image, but an anchor is a causal language model of text"),
        (
            "exported",
            "got 'exported', which runs in onnx, but an anchor runs in torch: attachments are trained through it",
        ),
    ],
)
def test_what_cannot_be_an_anchor(anchor: str, message: str) -> None:
    assert problems(Augmenter("prices"), anchor=anchor) == [f"composition.anchor: {message}"]


def test_a_composition_needs_an_augmenter() -> None:
    assert problems() == ["composition.augmenters: is empty; an anchor alone needs no composition"]


def test_an_augmenter_is_named_once() -> None:
    assert problems(Augmenter("prices"), Augmenter("code"), Augmenter("prices", reading="prompt")) == [
        "composition.augmenters[2].name: got 'prices', which augmenters[0] already is; put all its attachments "
        "into one augmenter"
    ]


def test_a_composition_is_named_so_that_files_and_models_can_be() -> None:
    with pytest.raises(DeclarationError, match=r"composition\.name: got 'my desk', but a name is letters, digits"):
        make_plan(
            Composition(name="my desk", anchor="anchor", augmenters=[Augmenter("prices")]), registry=small_registry()
        )


def test_missing_facts_are_named_with_the_way_to_give_them() -> None:
    registry = small_registry()
    nothing = dict.fromkeys(("num_layers", "hidden_size", "num_heads", "causal"))
    registry.add(card("bare", source="folder:/nowhere/bare").model_copy(update=nothing))
    assert problems(Augmenter("bare"), registry=registry) == [
        "composition.augmenters[0].name: the card of 'bare' does not give num_layers, hidden_size and causal, and its "
        "files (folder:/nowhere/bare) are not here to be read; write num_layers=..., hidden_size=..., causal=... on "
        "the card, or fetch the model"
    ]
    as_anchor = problems(Augmenter("prices"), anchor="bare", registry=registry)
    assert any("num_layers, hidden_size and causal" in problem for problem in as_anchor)
    assert any("does not give num_heads" in problem for problem in as_anchor)
    with pytest.raises(DeclarationError) as caught:
        make_plan(
            Composition(name="desk", anchor="bare", augmenters=[Augmenter("prices", num_heads=4)]), registry=registry
        )
    assert "num_heads" not in str(caught.value)


def test_all_problems_come_at_once_with_the_nested_ones_in_their_place() -> None:
    inner = Composition(name="inner", anchor="cod", augmenters=[Augmenter("words", attach=[place(9, 1)])])
    found = problems(
        Augmenter("prises"), Augmenter(inner, scale=float("inf")), Augmenter("prices", attach=[place(1, 26)])
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "composition.augmenters[0].name",
        "composition.augmenters[1].scale",
        "composition.augmenters[1].name.anchor",
        "composition.augmenters[1].name.augmenters[0].attach[0].augmenter_layer",
        "composition.augmenters[2].attach[0].anchor_layer",
    ]


def test_the_listing_reads_as_documented_and_survives_the_way_between_processes() -> None:
    with pytest.raises(DeclarationError) as caught:
        make_plan(
            Composition(name="desk", anchor="anchor", augmenters=[Augmenter("prises", scale=float("nan"))]),
            registry=small_registry(),
        )
    assert str(caught.value).splitlines() == [
        "composition 'desk': 2 problems",
        "  composition.augmenters[0].name: got 'prises', which the registry does not know; nearest: 'prices'",
        "  composition.augmenters[0].scale: got nan, but a finite number is needed; 0 is off",
    ]
    assert str(copy.copy(caught.value)) == str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_nothing_can_be_written_into_an_export() -> None:
    inner = Composition(name="inner", anchor="prices-onnx-int8", augmenters=[Augmenter("words", attach=every(4))])
    (problem,) = problems(Augmenter(inner, attach=[place(3, 2)]))
    assert problem == (
        f"{AT}.name.anchor: got 'prices-onnx-int8', which runs in onnx, but an anchor runs in torch: "
        "attachments are trained through it"
    )
