from __future__ import annotations

import pytest
from pydantic import ValidationError

from calm_graph.declare.composition import At, Attachment, Augmenter, Composition, Every, at, every
from calm_graph.errors import DeclarationError

INNER = Composition(name="inner", anchor="code", augmenters=[Augmenter("words")])
DESK = Composition(
    name="desk",
    anchor="anchor",
    augmenters=[
        Augmenter("prices", attach=[{"augmenter_layer": 1, "anchor_layer": 2}], reading="prompt"),
        Augmenter(INNER, attach=at(anchor_layers=[3])),
        Augmenter("code", attach=every(2), scale=0),
    ],
)


def test_the_papers_placement_is_the_default() -> None:
    assert Augmenter("prices").attach == Every(step=4)


def test_names_may_be_models_or_compositions() -> None:
    assert [augmenter.key for augmenter in DESK.augmenters] == ["prices", "inner", "code"]


def test_declarations_are_values() -> None:
    again = Composition.model_validate_json(DESK.model_dump_json())
    assert again == DESK and hash(again) == hash(DESK)
    assert Composition.parse(DESK.model_dump(mode="json")) == DESK
    with pytest.raises(ValidationError, match="frozen"):
        DESK.name = "other"  # type: ignore[misc]


def test_each_form_of_attach_is_recognised() -> None:
    def attach(value: object) -> object:
        return Augmenter.model_validate({"name": "prices", "attach": value}).attach

    assert attach({"step": 3}) == attach({"kind": "every", "step": 3}) == Every(step=3)
    assert attach({"anchor_layers": [1, 2]}) == At(anchor_layers=(1, 2))
    assert attach([{"augmenter_layer": 1, "anchor_layer": 2}]) == (Attachment(augmenter_layer=1, anchor_layer=2),)


def test_unknown_keys_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match=r"unknown key; did you mean 'attach'\?"):
        Augmenter("prices", atach=every(4))  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="unknown key; known keys: name, anchor, augmenters, description"):
        Composition(name="desk", anchor="anchor", xyz=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="one positional argument"):
        Augmenter("prices", every(4))  # type: ignore[misc]


def test_every_problem_of_plain_data_has_its_path() -> None:
    data = {
        "name": 3,
        "anchr": "anchor",
        "augmenters": [
            {"name": "prices", "atach": 4, "reading": "strem", "scale": "loud"},
            {
                "name": {"name": "inner", "anchor": 3, "augmenter": []},
                "attach": [{"augmenter_layer": "1", "anchor_layer": True, "x": 1}],
            },
            {"name": "code", "attach": 4},
            {"attach": {"stp": 4}},
            7,
        ],
    }
    with pytest.raises(DeclarationError) as caught:
        Composition.parse(data, where="desk.json")
    messages = [str(problem) for problem in caught.value.problems]
    assert messages[:5] == [
        "composition.name: got 3, but a text is needed",
        "composition.anchor: is missing",
        "composition.augmenters[0].reading: got 'strem', but allowed are 'prompt' or 'stream'",
        "composition.augmenters[0].scale: got 'loud', but a number is needed",
        "composition.augmenters[0].atach: unknown key; did you mean 'attach'?",
    ]
    assert str(caught.value).startswith("desk.json: 16 problems\n")
    assert [problem.path for problem in caught.value.problems] == [
        "composition.name",
        "composition.anchor",
        "composition.augmenters[0].reading",
        "composition.augmenters[0].scale",
        "composition.augmenters[0].atach",
        "composition.augmenters[1].name.anchor",
        "composition.augmenters[1].name.augmenter",
        "composition.augmenters[1].attach[0].augmenter_layer",
        "composition.augmenters[1].attach[0].anchor_layer",
        "composition.augmenters[1].attach[0].x",
        "composition.augmenters[2].attach",
        "composition.augmenters[3].name",
        "composition.augmenters[3].attach.step",
        "composition.augmenters[3].attach.stp",
        "composition.augmenters[4]",
        "composition.anchr",
    ]


def test_layers_are_whole_numbers() -> None:
    with pytest.raises(DeclarationError, match=r"attach\[0\]\.anchor_layer: got 2\.0, but a whole number is needed"):
        Composition.parse(
            {
                "name": "desk",
                "anchor": "a",
                "augmenters": [{"name": "b", "attach": [{"augmenter_layer": 1, "anchor_layer": 2.0}]}],
            }
        )


def test_what_is_no_mapping_at_all() -> None:
    with pytest.raises(DeclarationError, match=r"composition: got \[\], but the fields of Composition are needed"):
        Composition.parse([])


def test_the_schema_allows_what_is_written() -> None:
    definitions = Composition.model_json_schema()["$defs"]
    assert definitions["Composition"]["required"] == ["name", "anchor"]
    assert {"Attachment", "Every", "At", "Augmenter"} < set(definitions)
