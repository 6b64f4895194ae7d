from __future__ import annotations

import pytest

from calm_graph.declare.composition import Attachment, Augmenter, Composition
from calm_graph.model.attachment import Attachment as AttachmentModule
from calm_graph.plan.estimate import count_parameters, estimate, model_size
from calm_graph.plan.graph import Plan, make_plan
from registry import Registry
from registry import registry as built_in
from tests.plan.cards import card, small_registry


def plan(*augmenters: Augmenter) -> Plan:
    return make_plan(Composition(name="desk", anchor="anchor", augmenters=augmenters), registry=small_registry())


ONE = [Attachment(augmenter_layer=2, anchor_layer=5)]


@pytest.mark.parametrize("fields", [{}, {"gate": "tanh"}, {"norms": "none"}])
def test_parameters_are_those_of_the_module(fields: dict[str, str]) -> None:
    (planned,) = plan(Augmenter.model_validate({"name": "prices", "attach": ONE, **fields})).attachments
    module = AttachmentModule(
        source_width=planned.source_width,
        target_width=planned.target_width,
        num_heads=planned.num_heads,
        head_dim=planned.head_dim,
        norms=planned.norms,
        gate=planned.gate,
    )
    assert count_parameters(planned) == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "name, block",
    [
        # Counted by hand from the published configs: attention and MLP matrices, and the norms.
        ("smollm2-135m-instruct", 576 * 64 * (9 + 3) * 2 + 3 * 576 * 1536 + 2 * 576),
        ("qwen2.5-coder-0.5b", 896 * 64 * (14 + 2) * 2 + 3 * 896 * 4864 + 2 * 896 + 64 * (14 + 2 + 2)),
    ],
)
def test_blocks_of_real_models(name: str, block: int) -> None:
    size = model_size(built_in.get(name))
    assert size.block == pytest.approx(block, rel=1e-3)


def test_without_a_published_total_the_shape_gives_it() -> None:
    size = model_size(card("bare").model_copy(update={"num_parameters": None}))
    assert not size.is_exact
    assert (size.block, size.embedding) == (4 * 64 * 64 + 3 * 64 * 256, 64_000)


def test_experts_that_do_not_run_are_loaded_and_cost_nothing() -> None:
    dense = card("prices", 10, num_parameters=1_128_000)  # 2 x 64,000 of them embeddings
    mixture = dense.model_copy(update={"num_active_parameters": 528_000})
    sizes = [model_size(each) for each in (dense, mixture)]
    assert [size.block for size in sizes] == [100_000, 100_000]
    assert [size.active_block for size in sizes] == [100_000, 40_000]
    costs = []
    for each in (dense, mixture):
        registry = Registry([card("anchor", 22, 96, 6), each])
        declared = Composition(name="x", anchor="anchor", augmenters=[Augmenter("prices", attach=ONE)])
        costs.append(estimate(make_plan(declared, registry=registry)).runs["prices"])
    assert costs[0].num_parameters == costs[1].num_parameters
    num_blocks = ONE[0].augmenter_layer + 1
    assert costs[0].flops_per_prompt_token - costs[1].flops_per_prompt_token == num_blocks * 2 * 60_000


def test_flops_of_one_attachment_by_hand() -> None:
    found = plan(Augmenter("prices", attach=ONE))
    cost = estimate(found, num_context_tokens=10).edges["prices", "anchor"]
    c, d = 64, 96
    new_state, attending = 2 * (c * d + 2 * d * d), 2 * 2 * d * d + 4 * 10 * d
    assert cost.flops_per_prompt_token == cost.flops_per_generated_token == new_state + attending
    assert cost.cache_values_per_token == 2 * d


def test_what_reads_the_prompt_once_costs_nothing_for_a_new_token() -> None:
    cost = estimate(plan(Augmenter("prices", attach=ONE, reading="prompt")))
    assert cost.runs["prices"].flops_per_generated_token == 0
    assert cost.runs["prices"].flops_per_prompt_token > 0
    edge = cost.edges["prices", "anchor"]
    assert 0 < edge.flops_per_generated_token < edge.flops_per_prompt_token


def test_truncated_models_cost_what_runs_of_them() -> None:
    deep = estimate(plan(Augmenter("prices", attach=[Attachment(augmenter_layer=11, anchor_layer=5)])))
    shallow = estimate(plan(Augmenter("prices", attach=ONE)))
    assert shallow.runs["prices"].flops_per_prompt_token * 4 == deep.runs["prices"].flops_per_prompt_token
    assert shallow.runs["prices"].cache_values_per_token * 4 == deep.runs["prices"].cache_values_per_token
    assert shallow.num_frozen_parameters < deep.num_frozen_parameters


def test_a_model_that_runs_twice_is_loaded_once() -> None:
    inner = Composition(name="inner", anchor="code", augmenters=[Augmenter("prices", reading="prompt", attach=ONE)])
    twice = estimate(plan(Augmenter(inner), Augmenter("prices", attach=ONE)))
    parts = (twice.runs["prices"], twice.runs["inner"], twice.runs["anchor"])
    assert twice.num_frozen_parameters == sum(part.num_parameters for part in parts)
