"""What a training run needs: by hand where a hand can, and how it answers to each knob."""

from __future__ import annotations

from typing import Any

import pytest

from calm_graph.declare.composition import Attachment, Augmenter, Composition
from calm_graph.errors import DeclarationError, InputError
from calm_graph.plan.budget import Budget, make_budget, stored_bytes_per_sample
from calm_graph.plan.budget_table import budget_table
from calm_graph.plan.estimate import count_parameters, model_size
from calm_graph.plan.gpus import GPUS, find_gpu
from calm_graph.plan.graph import Plan, make_plan
from calm_graph.plan.step_flops import cached_runs, gradient_starts, num_tokens, step_flops
from calm_graph.plan.step_memory import step_memory
from calm_graph.plan.workload import Workload
from tests.plan.cards import card, small_registry

ONE = [Attachment(augmenter_layer=2, anchor_layer=5)]
TWO = [Attachment(augmenter_layer=2, anchor_layer=5), Attachment(augmenter_layer=7, anchor_layer=9)]


def plan(*augmenters: Augmenter) -> Plan:
    return make_plan(Composition(name="desk", anchor="anchor", augmenters=augmenters), registry=small_registry())


def workload(**changes: Any) -> Workload:
    return Workload(**{"batch_size": 4, "sequence_length": 100, "prompt_share": 0.4, "num_tokens": 1e6, **changes})


def budget(found: Plan, gpu: str = "h100", num_gpus: int = 1, **changes: Any) -> Budget:
    return make_budget(found, workload(**changes), gpu=find_gpu(gpu), num_gpus=num_gpus)


def chain() -> Plan:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("prices", attach=TWO)])
    outer = [Attachment(augmenter_layer=15, anchor_layer=11)]
    return plan(Augmenter(inner, attach=outer))


def test_flops_of_a_step_by_hand() -> None:
    found = plan(Augmenter("prices", attach=ONE, reading="prompt"))
    flops = step_flops(found, workload())
    c, d, read, written = 64, 96, 40, 100
    block = 2 * model_size(found.run("prices").card).block
    assert flops.augmenters == {"prices": 3 * (block * read + 4 * read**2 * c)}
    block, attention, logits = 2 * model_size(found.anchor.card).block, 4 * written**2 * d, 2 * 96_000 * 60
    assert flops.anchor == 22 * (block * written + attention) + logits
    linear, attending = 2 * read * (c * d + 2 * d * d) + 2 * written * 2 * d * d, 4 * read * written * d
    assert flops.attachments == linear + attending
    # Layer 5 is the first that gets gradients, so blocks 6 to 21 do.
    anchor = 16 * (block * written + attention * 5 // 2) + logits
    assert flops.backward == anchor + 2 * linear + attending * 5 // 2


def test_told_states_end_where_they_are_compared_and_have_a_teacher() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    answers, told = step_flops(found, workload()), step_flops(found, workload(told_layer=8))
    block = 2 * model_size(found.anchor.card).block * 100
    attention = 4 * 100**2 * 96
    assert told.anchor == told.teacher == 9 * (block + attention)
    assert answers.backward - told.backward == 13 * (block + attention * 5 // 2) + 2 * 96_000 * 60
    assert (answers.teacher, told.augmenters) == (0, answers.augmenters)
    assert step_memory(found, workload(told_layer=8)).logits == 0


def test_of_kept_samples_the_anchor_alone_runs_as_well() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    plain, kept = step_flops(found, workload()), step_flops(found, workload(keep_share=0.25))
    assert kept.teacher == pytest.approx(plain.anchor / 4) and kept.total == plain.total + kept.teacher
    assert step_memory(found, workload(keep_share=0.25)).logits > step_memory(found, workload()).logits


def test_gradients_pass_through_an_augmenter_that_reads_another_one() -> None:
    found = chain()
    assert gradient_starts(found) == {"inner": 5, "anchor": 11}
    assert cached_runs(found, workload(states="cached")) == {"prices"}
    alone = step_flops(plan(Augmenter("code", attach=[Attachment(augmenter_layer=15, anchor_layer=11)])), workload())
    block = 2 * model_size(found.run("inner").card).block * 100
    assert step_flops(found, workload()).backward > alone.backward + 10 * block  # its blocks 6 to 15


def test_nothing_is_trained_below_the_first_attachment() -> None:
    low, high = (
        plan(Augmenter("prices", attach=[Attachment(augmenter_layer=2, anchor_layer=layer)])) for layer in (5, 21)
    )
    assert step_flops(low, workload()).backward > step_flops(high, workload()).backward
    assert step_memory(low, workload()).activations > step_memory(high, workload()).activations
    assert step_flops(low, workload()).anchor == step_flops(high, workload()).anchor


def test_memory_of_what_lasts_by_hand() -> None:
    found = plan(Augmenter("prices", attach=TWO))
    trained = sum(count_parameters(each) for each in found.attachments)
    memory = step_memory(found, workload(precision="fp32"))
    loaded = 1_000_000 + 8 * model_size(found.run("prices").card).block + 64_000
    assert (memory.frozen_weights, memory.trained_weights, memory.moments) == (4 * loaded, 4 * trained, 8 * trained)
    assert memory.logits == 3 * 4 * 4 * 60 * 1000
    half = step_memory(found, workload(precision="bf16"))
    assert (half.frozen_weights, half.trained_weights, half.gradients) == (2 * loaded, 6 * trained, 4 * trained)
    assert 2 * half.contexts == memory.contexts == 4 * 100 * 2 * 2 * 96 * 4


def test_what_passes_grows_with_the_batch_and_the_largest_batch_fits() -> None:
    found = plan(Augmenter("prices", attach=TWO))
    assert step_memory(found, workload(batch_size=8)).passing == 2 * step_memory(found, workload()).passing
    most = budget(found, "t4", precision="fp32").max_batch_size
    assert most is not None
    assert budget(found, "t4", precision="fp32", batch_size=most).fits
    assert budget(found, "t4", precision="fp32", batch_size=most + 1).fits is False
    assert budget(found, "cpu", precision="fp32").fits is None


def test_more_devices_take_less_time_and_send_gradients_around_a_ring() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    one, four = budget(found), budget(found, num_gpus=4)
    assert (one.num_steps, four.num_steps) == (2500, 625)
    assert one.hours == pytest.approx(4 * four.hours)
    assert one.flops == four.flops == pytest.approx(1e4 * one.sample_flops.total)
    assert one.sent_bytes_per_step == 0
    assert four.sent_bytes_per_step == 2 * 3 / 4 * four.memory.gradients


def test_sharding_spreads_the_frozen_weights_and_sends_more() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    whole, shards = budget(found, num_gpus=4), budget(found, num_gpus=4, sharding="fsdp")
    assert whole.memory.frozen_weights == 4 * shards.memory.frozen_weights
    assert shards.memory.gathered_weights > 0
    assert shards.sent_bytes_per_step > whole.sent_bytes_per_step + 3 * shards.memory.frozen_weights


def test_cached_states_save_the_augmenter_and_cost_disk() -> None:
    found = plan(Augmenter("prices", attach=TWO, reading="prompt"))
    plain, cached = budget(found), budget(found, states="augmenters", epochs=2)
    assert cached.sample_flops.augmenters == {"prices": 0}
    assert cached.memory.frozen_weights == 2 * 1_000_000 < plain.memory.frozen_weights
    assert cached.states is not None and plain.states is None
    assert cached.states.num_bytes == 5_000 * 2 * 64 * 40 * 2  # samples, taps, width, prompt, bf16
    assert cached.states.flops == 5_000 * plain.sample_flops.augmenters["prices"]
    both = budget(found, states="cached", epochs=2)
    assert both.states is not None
    assert both.states.num_bytes == cached.states.num_bytes + 5_000 * 96 * 100 * 2
    block = 2 * model_size(found.anchor.card).block * 100 + 4 * 100**2 * 96
    assert cached.sample_flops.anchor - both.sample_flops.anchor == 6 * block
    assert (cached.states.runs, both.states.runs) == (("prices",), ("prices", "anchor"))
    assert both.states.flops == cached.states.flops + 5_000 * 6 * block


def test_blocks_that_are_run_again_take_time_for_memory() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    kept, again = budget(found), budget(found, activation_checkpointing=True)
    block = 2 * model_size(found.anchor.card).block * 100 + 4 * 100**2 * 96
    assert again.sample_flops.total - kept.sample_flops.total == 16 * block
    assert 2 * again.memory.activations < kept.memory.activations


def test_another_tokenizer_has_another_number_of_tokens() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    longer = workload(token_ratios={"prices": 1.5}, states="augmenters")
    assert num_tokens(found.run("prices"), longer) == 150
    assert stored_bytes_per_sample(found, longer) == 150 * 64 * 2


def test_what_a_card_does_not_say_is_named() -> None:
    registry = small_registry()
    registry.add(card("bare", intermediate_size=None, num_parameters=None))
    registry.add(card("words-only", vocab_size=None))
    declared = Composition(name="desk", anchor="words-only", augmenters=[Augmenter("bare", attach=ONE)])
    found = budget(make_plan(declared, registry=registry))
    assert [sentence.partition(";")[0] for sentence in found.missing] == [
        "card 'bare' does not say intermediate_size",
        "card 'bare' does not say num_parameters",
        "card 'words-only' does not say vocab_size",
    ]
    assert found.memory.logits == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "t4"}, "precision: got 'bf16', but NVIDIA T4 has no such arithmetic in the table; use fp32"),
        ({"num_gpus": 0}, "num_gpus: got 0, but at least 1 is needed"),
        ({"sequence_length": 1000}, "sequence_length: got 1000, but anchor 'anchor' has a context of 512"),
        (
            {"token_ratios": {"price": 1}},
            r"token_ratios: got 'price', but the augmenters are .*did you mean 'prices'\?",
        ),
        ({"told_layer": 4}, "told_layer: got 4, but allowed are 5..21: from the last attachment on"),
        ({"told_layer": 8, "sharding": "fsdp"}, "told_layer: got 8, but states are compared with sharding='none' only"),
        ({"told_layer": 8, "keep_share": 0.5}, "keep_share: rows are kept without told_layer"),
        ({"keep_share": 0.5, "sharding": "fsdp"}, "keep_share: rows are kept without told_layer and with sharding"),
        ({"token_ratios": {"prices": 0}}, r"token_ratios\['prices'\]: got 0.0, but more than 0 is needed"),
    ],
)
def test_a_workload_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget(plan(Augmenter("prices", attach=ONE)), **changes)


def test_all_mistakes_of_a_workload_come_at_once() -> None:
    with pytest.raises(DeclarationError) as caught:
        Workload.parse({"batch_size": 0, "prompt_share": 1, "stats": "cached"})
    assert [problem.path for problem in caught.value.problems] == [
        "workload.batch_size",
        "workload.prompt_share",
        "workload.stats",
    ]


def test_devices_have_sensible_facts() -> None:
    for gpu in GPUS.values():
        assert gpu.peak_flops["fp32"] <= gpu.peak_flops.get("bf16", gpu.peak_flops["fp32"])
    with pytest.raises(InputError, match=r"got 'h10', but known are .*did you mean 'h100'\?"):
        find_gpu("h10")
    assert find_gpu("H100") is GPUS["h100"]


def test_the_table_says_whether_it_fits() -> None:
    found, big = plan(Augmenter("prices", attach=ONE)), workload(batch_size=1_000_000, states="cached")
    needed = make_budget(found, big, gpu=find_gpu("l4"), num_gpus=2)
    text = budget_table(found, big, needed, gpu=find_gpu("l4"), num_gpus=2, utilisation=0.4)
    assert f"DOES NOT FIT into 24.0 GB: at most {needed.max_batch_size} samples at once" in text
    assert "augmenter prices" in text and "cached states on disk" in text
