from __future__ import annotations

from typing import Any

import pytest

from calm_graph.declare.composition import Attachment, Augmenter, Composition, at, every
from calm_graph.declare.settings import TrainSettings
from calm_graph.declare.space import Space
from calm_graph.errors import DeclarationError

DECLARED = Composition(
    name="desk",
    anchor="anchor",
    augmenters=[
        Augmenter("prices", attach=[Attachment(augmenter_layer=1, anchor_layer=2)], reading="prompt"),
        Augmenter("code", num_heads=2),
    ],
)


def test_every_combination_has_a_name_of_its_own() -> None:
    space = Space.parse(
        {
            "placement": ["every:2", "at:3+7"],
            "num_heads": ["4", "8"],
            "reading": ["prompt", "stream"],
            "learning_rate": ["1e-3", "0.003"],
        }
    )
    choices = space.choices()
    assert len(choices) == len({choice.name for choice in choices}) == 16
    assert choices[0].name == "every2-heads4-prompt-lr0.001"
    assert choices[-1].name == "at3_7-heads8-stream-lr0.003"


def test_a_choice_changes_what_it_names_and_nothing_else() -> None:
    (choice,) = Space(placement=(every(2),), num_heads=(4,), learning_rate=(1e-2,)).choices()
    composed = choice.composed(DECLARED)
    assert [each.attach for each in composed.augmenters] == [every(2), every(2)]
    assert [each.num_heads for each in composed.augmenters] == [4, 4]
    assert [each.reading for each in composed.augmenters] == ["prompt", "stream"]
    assert choice.settings(TrainSettings(max_steps=7)) == TrainSettings(max_steps=7, learning_rate=1e-2)
    (nothing,) = Space().choices()
    assert (nothing.name, nothing.composed(DECLARED)) == ("as-declared", DECLARED)


def test_a_draw_is_a_part_of_all_and_the_same_for_a_seed() -> None:
    space = Space(placement=tuple(every(step) for step in range(1, 30)), num_heads=(1, 2))
    drawn = space.choices(at_most=5, seed=3)
    assert len(drawn) == 5 and set(drawn) < set(space.choices())
    assert drawn == space.choices(at_most=5, seed=3) != space.choices(at_most=5, seed=4)
    assert space.choices(at_most=1000) == space.choices()


def test_values_named_twice_are_tried_once() -> None:
    assert len(Space.parse({"placement": ["every:2", every(2)]}).choices()) == 1
    named = Space(placement=(at(anchor_layers=[3, 7]), at(anchor_layers=[3, 7], augmenter_layers=[0, 1])))
    assert len(named.choices()) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"placement": ["every4"]}, "a placement is every:STEP, such as every:4, or at:LAYER"),
        ({"num_heads": ["four"]}, r"space.num_heads\[0\]: got 'four', but a whole number is needed"),
        ({"reading": ["both"]}, r"space.reading\[0\]: got 'both', but allowed are 'prompt' or 'stream'"),
        ({"learning_rate": ["0"]}, "each must be more than 0"),
        ({"heads": ["4"]}, "space.heads: unknown key; did you mean 'num_heads'?"),
    ],
)
def test_a_mistake_names_the_value(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        Space.parse(data)
