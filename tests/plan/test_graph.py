from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calm_graph.declare.composition import Attachment, Augmenter, Composition, at, every
from calm_graph.plan.graph import Plan, make_plan
from registry import Registry
from tests.plan.cards import card, small_registry

Pairs = list[tuple[int, int]]


def attach(*layers: tuple[int, int]) -> list[Attachment]:
    return [Attachment(augmenter_layer=tap, anchor_layer=layer) for tap, layer in layers]


def plan(*augmenters: Augmenter, anchor: str = "anchor", registry: Registry | None = None) -> Plan:
    composition = Composition(name="desk", anchor=anchor, augmenters=augmenters)
    return make_plan(composition, registry=registry or small_registry())


def names(found: Plan) -> list[str]:
    return [run.name for run in found.runs]


def test_runs_go_only_to_their_last_tap_and_the_anchor_goes_through() -> None:
    found = plan(Augmenter("prices", attach=attach((2, 5), (7, 5))), Augmenter("code", attach=every(10)))
    prices, code, anchor = found.runs
    assert (prices.taps, prices.num_blocks) == ((2, 7), 8)
    assert (code.taps, code.num_blocks) == ((9, 19), 20)
    assert (anchor.taps, anchor.num_blocks, anchor.is_anchor) == ((), 22, True)
    assert found.anchor is anchor


def test_an_attachment_carries_what_its_module_needs() -> None:
    (attachment,) = plan(Augmenter("prices", attach=attach((2, 5)), num_heads=3, gate="tanh")).attachments
    assert attachment.key == "prices@2_to_anchor@5"
    assert (attachment.source_width, attachment.target_width) == (64, 96)
    assert (attachment.num_heads, attachment.head_dim) == (3, 32)
    assert (attachment.gate, attachment.positions, attachment.trainable) == ("tanh", "none", True)
    assert attachment.checkpoint is None


def test_heads_come_from_the_attachment_then_the_augmenter_then_the_anchor() -> None:
    both = [Attachment(augmenter_layer=0, anchor_layer=0, num_heads=2), Attachment(augmenter_layer=1, anchor_layer=1)]
    assert [found.num_heads for found in plan(Augmenter("prices", attach=both, num_heads=3)).attachments] == [2, 3]
    assert [found.num_heads for found in plan(Augmenter("prices", attach=both)).attachments] == [2, 6]


def test_keys_and_module_names_have_no_dots() -> None:
    registry = small_registry()
    registry.add(card("qwen2.5", 4))
    registry.add(card("qwen2_5", 4))
    found = plan(Augmenter("qwen2.5"), Augmenter("qwen2_5"), registry=registry)
    keys = [run.module_key for run in found.runs] + [attachment.key for attachment in found.attachments]
    assert not any("." in key for key in keys)
    assert len(set(keys)) == len(keys)


def test_edges_carry_scale_and_visibility() -> None:
    found = plan(Augmenter("prices", scale=0.5, prompt_visibility="causal"), Augmenter("code", scale=0))
    assert [(edge.source, edge.scale, edge.prompt_visibility) for edge in found.into("anchor")] == [
        ("prices", 0.5, "causal"),
        ("code", 0.0, "full"),
    ]


def test_a_nested_composition_becomes_a_run_that_reads_and_is_read() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words", attach=attach((3, 4)))])
    found = plan(Augmenter(inner, attach=attach((9, 20))), Augmenter("prices"))
    assert names(found) == ["words", "inner", "prices", "anchor"]
    run = found.run("inner")
    assert (run.card.name, run.taps, run.num_blocks, run.is_anchor) == ("code", (9,), 10, False)
    assert found.parallel == (("words", "prices"), ("inner",), ("anchor",))
    assert [edge.source for edge in found.into("inner")] == ["words"]
    assert all(attachment.trainable for attachment in found.attachments)


def test_a_tap_at_an_attachments_layer_reads_the_state_with_it() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words", attach=attach((3, 9)))])
    assert len(plan(Augmenter(inner, attach=attach((9, 20)))).into("inner")) == 1


def test_attachments_above_the_last_tap_are_left_out_with_a_note() -> None:
    words = Augmenter("words", attach=attach((2, 4), (7, 10)))
    inner = Composition(name="inner", anchor="code", augmenters=[words, Augmenter("prices", attach=attach((1, 20)))])
    found = plan(Augmenter(inner, attach=attach((9, 20))))
    assert names(found) == ["words", "inner", "anchor"]
    assert found.run("words").taps == (2,)
    assert sorted(note.path for note in found.skipped) == [
        "composition.augmenters[0].name.augmenters[0].attach[1]",
        "composition.augmenters[0].name.augmenters[1].attach[0]",
    ]
    assert "adds to layer 10 of 'inner', but its last layer that is read is 9" in str(found.skipped)


def test_the_same_model_read_the_same_way_is_one_run() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words", attach=attach((1, 2)))])
    found = plan(Augmenter(inner, attach=attach((9, 3))), Augmenter("words", attach=attach((5, 3)), scale=0.1))
    assert names(found) == ["words", "inner", "anchor"]
    assert found.run("words").taps == (1, 5)
    assert [(edge.source, edge.target, edge.scale) for edge in found.edges] == [
        ("words", "inner", 1.0),
        ("words", "anchor", 0.1),
        ("inner", "anchor", 1.0),
    ]


def test_the_same_model_read_differently_is_another_run_and_the_outer_one_keeps_the_name() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words", reading="prompt")])
    found = plan(Augmenter(inner), Augmenter("words"))
    assert set(names(found)) == {"words", "inner/words", "inner", "anchor"}
    assert found.run("words").reading == "stream"
    assert found.run("inner/words").reading == "prompt"


def test_a_model_may_augment_itself() -> None:
    found = plan(Augmenter("anchor", reading="prompt"))
    assert names(found) == ["desk/anchor", "anchor"]
    assert found.runs[0].num_blocks == 20


def test_what_a_nested_composition_does_not_see_its_augmenters_do_not_see() -> None:
    inner = Composition(
        name="inner",
        anchor="code",
        augmenters=[Augmenter("words", prompt_template="<{prompt}>"), Augmenter("eyes", reading="prompt")],
    )
    found = plan(Augmenter(inner, reading="prompt", prompt_template="Q: {prompt}"))
    assert (found.run("words").reading, found.run("words").prompt_template) == ("prompt", "<Q: {prompt}>")
    assert (found.run("eyes").reading, found.run("eyes").prompt_template) == ("prompt", None)


def test_a_state_may_be_dropped_after_the_last_attachment_that_reads_it() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("words", attach=attach((1, 2), (1, 4)))])
    found = plan(Augmenter(inner, attach=attach((9, 3))), Augmenter("words", attach=attach((1, 0), (5, 9), (5, 3))))
    assert found.last_use == {
        ("words", 1): "words@1_to_anchor@0",
        ("words", 5): "words@5_to_anchor@9",
        ("inner", 9): "inner@9_to_anchor@3",
    }


def test_the_runtime_is_the_augmenters_then_the_cards() -> None:
    found = plan(
        Augmenter("exported"), Augmenter("prices", runtime="onnx", attach=attach((3, 1), (7, 2))), Augmenter("code")
    )
    assert [found.run(name).runtime for name in ("exported", "prices", "code")] == ["onnx", "onnx", "torch"]
    # It goes by the name that was declared, so that attachments are called the same whatever runs the model.
    assert found.run("prices").card.onnx is not None and found.run("prices").card.name == "prices"
    assert "prices@3_to_anchor@1" in {each.key for each in found.attachments}


def test_plain_data_is_planned_too() -> None:
    data = {"name": "desk", "anchor": "anchor", "augmenters": [{"name": "prices", "attach": {"step": 6}}]}
    assert len(make_plan(data, registry=small_registry()).attachments) == 2


def test_at_places_like_a_list() -> None:
    by_rule = plan(Augmenter("prices", attach=at(anchor_layers=[3, 9], augmenter_layers=[1, 2])))
    listed = plan(Augmenter("prices", attach=attach((1, 3), (2, 9))))
    assert [found.key for found in by_rule.attachments] == [found.key for found in listed.attachments]


@st.composite
def compositions(draw: st.DrawFn, depth: int = 3) -> Composition:
    """A composition over models of the registry, nested at random."""
    name = f"c{draw(st.integers(0, 999))}"
    chosen = draw(st.lists(st.sampled_from(["prices", "code", "words", "exported"]), min_size=1, unique=True))
    augmenters = [
        Augmenter(source, attach=every(draw(st.integers(1, 8))), reading=draw(st.sampled_from(["prompt", "stream"])))
        for source in chosen
    ]
    if depth and draw(st.booleans()):
        augmenters.append(Augmenter(draw(compositions(depth=depth - 1)), attach=every(draw(st.integers(1, 8)))))
    return Composition(name=name, anchor=draw(st.sampled_from(["anchor", "code"])), augmenters=augmenters)


@given(compositions())
def test_any_graph_has_an_order_that_each_run_can_go_in(composition: Composition) -> None:
    found = make_plan(composition, registry=small_registry())
    position = {run.name: index for index, run in enumerate(found.runs)}
    assert len(position) == len({run.module_key for run in found.runs}) == len(found.runs)
    assert [run.is_anchor for run in found.runs] == [False] * (len(found.runs) - 1) + [True]
    assert all(position[edge.source] < position[edge.target] for edge in found.edges)
    groups = {name: index for index, group in enumerate(found.parallel) for name in group}
    assert groups.keys() == position.keys()
    assert all(groups[edge.source] < groups[edge.target] for edge in found.edges)

    keys = [attachment.key for attachment in found.attachments]
    assert len(set(keys)) == len(keys)
    for run in found.runs[:-1]:
        assert run.taps and run.num_blocks == run.taps[-1] + 1 <= run.num_layers
    for attachment in found.attachments:
        assert attachment.augmenter_layer in found.run(attachment.source).taps
        assert attachment.anchor_layer < found.run(attachment.target).num_blocks
    assert set(found.last_use) == {(run.name, tap) for run in found.runs for tap in run.taps}


@given(compositions())
def test_planning_is_reproducible(composition: Composition) -> None:
    again = Composition.model_validate_json(composition.model_dump_json())
    assert again == composition
    first, second = (make_plan(declared, registry=small_registry()) for declared in (composition, again))
    assert first == second
    assert list(first.last_use.items()) == list(second.last_use.items())
