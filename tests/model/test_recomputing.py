"""Activation checkpointing of frozen blocks: the same numbers from less memory, and nothing left behind."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from calm_graph import Augmenter, every
from calm_graph.model.composed import ComposedModel
from registry.layouts import blocks
from tests.model.cases import ATTACH, CASES, decoding_batch
from tests.model.pico import Zoo

ARCHITECTURES = ("llama", "gemma3_text", "gpt2", "falcon", "bloom")
Step = tuple[torch.Tensor, dict[str, torch.Tensor], int]


class InterruptedHereError(Exception):
    """Raised by a test in the middle of a block."""


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("recomputing"))
    for seed, architecture in enumerate(ARCHITECTURES):
        zoo.add(architecture, architecture, tokenizer="bytes", seed=seed)
    zoo.add("reading", "llama", tokenizer="spaces", seed=99)
    return zoo


def batch(model: ComposedModel) -> dict[str, torch.Tensor]:
    ids, mask, lengths, width = decoding_batch(model)
    labels = ids.clone()
    labels[:, :width] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "prompt_lengths": lengths}


def step(model: ComposedModel) -> Step:
    """Loss, gradients, and the bytes of frozen activations that the forward kept for the backward."""
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch(model)).loss
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.detach(), gradients, sum(kept.values())


def assert_same(
    found: tuple[torch.Tensor, dict[str, torch.Tensor], int],
    expected: tuple[torch.Tensor, dict[str, torch.Tensor], int],
) -> None:
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys() and found[1]
    assert all(torch.equal(found[1][name], expected[1][name]) for name in found[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_step_bit_for_bit_from_less_memory(architectures: Zoo, architecture: str) -> None:
    model = architectures.compose(Augmenter("reading", attach=every(2)), anchor=architecture).train()
    expected = step(model)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    found = step(model)
    assert_same(found, expected)
    assert found[2] < 0.75 * expected[2]
    model.activation_checkpointing_disable()
    assert step(model)[2] == pytest.approx(expected[2], rel=0.05)


def test_augmenters_that_are_written_into(zoo: Zoo) -> None:
    model = zoo.compose(*CASES["nested"]).train()
    expected = step(model)
    runs: list[str] = []
    for name, backend in model.graph.backends.items():
        blocks(backend.body)[2].mlp.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    model.activation_checkpointing_enable()
    found = step(model)
    assert_same(found, expected)
    # Only the model in the middle has a backward.
    assert sorted(runs) == ["run:inner", "run:inner", "run:other"]


def test_a_cache_is_filled_once(zoo: Zoo) -> None:
    model = zoo.compose(*CASES["other"])
    ids, mask, lengths, _ = decoding_batch(model)
    expected = model(ids, mask, prompt_lengths=lengths, use_cache=True)
    model.activation_checkpointing_enable()
    found = model(ids, mask, prompt_lengths=lengths, use_cache=True)
    found.logits.sum().backward()
    assert found.past_key_values.get_seq_length() == ids.shape[1]
    assert torch.equal(found.logits, expected.logits)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    model.activation_checkpointing_disable()
    assert torch.equal(
        generated, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    )


def test_two_threads_do_not_mix(zoo: Zoo) -> None:
    plain, saving = (zoo.compose(*CASES["other"]).train() for _ in range(2))
    # One frozen anchor in both: only the calls differ.
    saving.anchor = plain.anchor
    saving.activation_checkpointing_enable()
    expected = {model: step(model) for model in (plain, saving)}
    assert expected[saving][2] < 0.75 * expected[plain][2]
    found: dict[ComposedModel, list[Step]] = {plain: [], saving: []}
    start = threading.Barrier(2)

    def work(model: ComposedModel) -> None:
        start.wait()
        found[model].extend(step(model) for _ in range(4))

    threads = [threading.Thread(target=work, args=(model,)) for model in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, steps in found.items():
        assert len(steps) == 4
        for each in steps:
            assert_same(each, expected[model])
            # Storage of something dropped at once may be reused, so bytes are not exact.
            assert each[2] == pytest.approx(expected[model][2], rel=0.05)


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_exception_leaves_nothing(zoo: Zoo, when: str) -> None:
    model = zoo.compose(*CASES["other"]).train()
    model.activation_checkpointing_enable()
    expected = step(model)
    runs: list[int] = []

    def interrupt(module: nn.Module, args: object) -> None:
        runs.append(1)
        if when == "forward" or len(runs) == 2:
            raise InterruptedHereError

    handle = blocks(model.anchor)[3].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptedHereError):
        step(model)
    handle.remove()
    assert_same(step(model), expected)
    ids = batch(model)["input_ids"]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        model.anchor(inputs_embeds=model.get_input_embeddings()(ids).requires_grad_())
    assert len(kept) > 4 * len(blocks(model.anchor)), "the anchor by itself keeps its activations"


def test_a_copy_is_a_model_of_its_own(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("other", attach=ATTACH)).train()
    model.activation_checkpointing_enable()
    expected = step(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.anchor.parameters():
            parameter.zero_()
    assert_same(step(twin), expected)


def test_what_it_cannot_do(zoo: Zoo) -> None:
    model = zoo.compose(*CASES["same"])
    with pytest.raises(ValueError, match="got every_n_layers=2, offload=False; a composition recomputes every block"):
        model.activation_checkpointing_enable(every_n_layers=2)
    assert not model.is_activation_checkpointing
