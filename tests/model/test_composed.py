"""The laws of a composed model: what it computes before training, what may be seen, and what never moves or stays."""

from __future__ import annotations

import threading
from contextvars import Context

import pytest
import torch
from torch import nn

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import InputError
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from registry.layouts import blocks
from tests.model.cases import ATTACH, CASES, PROMPTS, compose, decoding_batch, encoded, off
from tests.model.pico import Zoo, train_at_random

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
READINGS = [case for case in CASES if case not in ("same-template", "gate")]


class InterruptedHereError(Exception):
    """Raised by a test in the middle of something."""


def logits(model: ComposedModel, ids: torch.Tensor, mask: torch.Tensor | None = None, **more: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, mask, **more).logits


# Fresh: the anchor


def anchors_own(model: ComposedModel, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    positions = None if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        return model.anchor(input_ids=ids, attention_mask=mask, position_ids=positions).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("case", ["other", "gate", "diamond"])
def test_a_fresh_composition_is_its_anchor_bit_for_bit(zoo: Zoo, case: str, side: str, dtype: torch.dtype) -> None:
    composition = Composition(name="fresh", anchor="anchor", augmenters=CASES[case])
    model = build_model(composition, registry=zoo.registry, seed=0, dtype=dtype)
    ids, mask = encoded(model, PROMPTS, side=side)
    given = None if side == "none" else mask
    found = logits(model, ids, given, prompt_lengths=mask.sum(dim=1) // 2)
    assert found.dtype == dtype
    assert torch.equal(found, anchors_own(model, ids, given))


def test_a_fresh_composition_generates_what_its_anchor_does(zoo: Zoo) -> None:
    model = zoo.compose(*CASES["mixed"], trained=False)
    ids, mask = encoded(model, PROMPTS)
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.anchor.generate(ids, **options))


@pytest.mark.parametrize("case", ["other", "diamond", "mixed"])
def test_switched_off_is_the_anchor_bit_for_bit(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, mask = encoded(model, PROMPTS)
    with model.augmenters(off(model)):
        assert torch.equal(logits(model, ids, mask), anchors_own(model, ids, mask))
    declared = zoo.compose(*(augmenter.model_copy(update={"scale": 0.0}) for augmenter in CASES[case]))
    assert torch.equal(logits(declared, ids, mask), anchors_own(model, ids, mask))


# Training: only the attachments


def frozen_bytes(model: ComposedModel) -> dict[str, bytes]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors
        if not name.startswith("graph.edges.attachments.")
    }


def test_exactly_the_attachments_are_trainable(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("other", attach=ATTACH, gate="tanh"))
    parts = ["gate", "key.weight", "output.weight", "project.weight", "query.weight", "source_norm.weight"]
    parts += ["target_norm.weight", "value.weight"]
    expected = {
        f"graph.edges.attachments.{key}.{part}"
        for key in ("other@1_to_anchor@1", "other@3_to_anchor@3")
        for part in parts
    }
    assert {name for name, each in model.named_parameters() if each.requires_grad} == expected
    assert {name for name, _ in model.train().named_parameters() if name.startswith("graph.edges.")} == expected


def test_attachments_of_a_saved_composition_stay_as_they_are(zoo: Zoo) -> None:
    model = compose(zoo, "nested-checkpoint")
    trainable = {name.split(".")[3] for name, each in model.named_parameters() if each.requires_grad}
    assert trainable == {"saved@1_to_anchor@1", "saved@3_to_anchor@3"}
    assert len(model.attachments) == 4


@pytest.mark.parametrize("case", ["same", "other", "encoder", "nested", "nested-checkpoint", "mixed"])
def test_training_moves_the_attachments_and_nothing_else(zoo: Zoo, case: str) -> None:
    model = zoo.compose(*CASES[case], trained=False).train()
    ids, mask, lengths, width = decoding_batch(model)
    labels = ids.clone()
    labels[:, :width] = -100
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    before = frozen_bytes(model)
    start = {name: each.detach().clone() for name, each in trainable.items()}
    fixed = {name: each.clone() for name, each in model.attachments.named_parameters() if not each.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(ids, mask, labels=labels, prompt_lengths=lengths).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert frozen_bytes(model) == before
    assert all(not torch.equal(each, start[name]) for name, each in trainable.items())
    assert all(torch.equal(each, fixed[name]) for name, each in model.attachments.named_parameters() if name in fixed)
    assert losses[-1] < losses[0] - 0.05
    assert all(each.grad is None for name, each in model.named_parameters() if name not in trainable)


def test_the_loss_is_that_of_the_supervised_tokens(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, mask, lengths, width = decoding_batch(model)
    labels = ids.clone()
    labels[:, :width] = -100
    labels[1, width + 4 :] = -100
    output = model(ids, mask, labels=labels)
    whole = logits(model, ids, mask, prompt_lengths=lengths)
    expected = nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss.detach(), expected, **TOLERANCE)
    halved = model(ids, mask, labels=labels, num_items_in_batch=2 * int((labels != -100).sum()))
    torch.testing.assert_close(halved.loss * 2, output.loss, **TOLERANCE)


def test_only_positions_that_predict_a_label_reach_the_head(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, mask, lengths, width = decoding_batch(model)
    labels = ids.clone()
    labels[:, :width] = -100
    labels[0, width + 2 :] = -100
    labels[2, width:-3] = -100
    seen: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape))
    found = model(ids, mask, labels=labels, prompt_lengths=lengths).logits
    handle.remove()
    predicts = labels[:, 1:] != -100
    assert seen == [(1, int(predicts.sum()), found.shape[1])]
    torch.testing.assert_close(
        found, logits(model, ids, mask, prompt_lengths=lengths)[:, :-1][predicts], **TOLERANCE, check_stride=False
    )


def test_dropout_of_frozen_models_never_wakes(zoo: Zoo) -> None:
    augmenters = (Augmenter("dropping", attach=ATTACH), Augmenter("other", attach=ATTACH))
    model = zoo.compose(*augmenters, anchor="dropping")
    ids, mask = encoded(model, PROMPTS)
    asleep = logits(model, ids, mask)
    assert torch.equal(logits(model.train(), ids, mask), asleep)
    assert model.training and model.attachments.training
    assert not any(each.training for each in model.anchor.modules())
    assert not any(each.training for each in model.graph.backends.modules())
    assert any(isinstance(each, nn.Dropout) and each.p == 0.5 for each in model.anchor.modules())


# Visibility


def changed_at(
    model: ComposedModel, case: str, column: int, *, prompt_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a text and of the same text with another word at one column."""
    ids = torch.tensor([model.tokenizer(PROMPTS[1] + " price of apples is 3", add_special_tokens=False)["input_ids"]])
    other = ids.clone()
    other[0, column] = 295 if int(ids[0, column]) != 295 else 296
    lengths = torch.tensor([prompt_length])
    return logits(model, ids, prompt_lengths=lengths), logits(model, other, prompt_lengths=lengths)


@pytest.mark.parametrize("column", [9, 14, 20])
@pytest.mark.parametrize("case", READINGS)
def test_no_completion_token_is_seen_before_it_is_there(zoo: Zoo, case: str, column: int) -> None:
    model = compose(zoo, case)
    one, two = changed_at(model, case, column, prompt_length=6)
    assert torch.equal(one[:, :column], two[:, :column]) or torch.allclose(one[:, :column], two[:, :column], atol=1e-6)
    assert (one[:, column:] - two[:, column:]).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["same-causal", "same-prompt-causal"])
def test_a_causal_prompt_does_not_look_ahead(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    one, two = changed_at(model, case, 8, prompt_length=16)
    torch.testing.assert_close(one[:, :8], two[:, :8], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["other-causal", "other-prompt-causal"])
def test_a_causal_prompt_with_another_tokenizer_does_not_look_ahead(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    prompts = ("The quick brown fox jumps over", "The quick brown pears is three")
    one, two = (torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in prompts)
    shared = len(model.tokenizer("The quick brown", add_special_tokens=False)["input_ids"])
    assert torch.equal(one[:, :shared], two[:, :shared])
    found = [logits(model, ids, prompt_lengths=torch.tensor([ids.shape[1]]))[:, :shared] for ids in (one, two)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    opened = compose(zoo, case.removesuffix("-causal"))
    found = [logits(opened, ids, prompt_lengths=torch.tensor([ids.shape[1]]))[:, :shared] for ids in (one, two)]
    assert (found[0] - found[1]).abs().amax(dim=-1).min() > 1e-4, "an open prompt is seen whole from its first token"


@pytest.mark.parametrize("case", ["same", "same-causal", "other", "other-causal", "same-prompt", "encoder"])
def test_an_augmenter_token_matters_exactly_where_it_is_visible(zoo: Zoo, case: str) -> None:
    """The states of one augmenter token are replaced, at the last layer that is read, hence without moving others."""
    name = CASES[case][0].key
    composition = CASES[case][0].model_copy(update={"attach": every(4)})
    model = zoo.compose(composition)
    text = PROMPTS[1] + " price of apples is 3 and 14"
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    length = 8
    before = logits(model, ids, prompt_lengths=torch.tensor([length]))
    request = model.graph.new_request(keeps=False)
    tokens = model.anchor_tokens(ids, None)
    model.graph.begin(request, tokens, prompt_lengths=torch.tensor([length]), prompt_texts=None, inputs={})
    with torch.no_grad():
        model.graph.push(request, tokens)
    (context,) = request.contexts.values()
    checked = 0
    for column, threshold in enumerate(context.threshold_BS[0].tolist()):
        moved = replaced_last_state(model, name, column, ids, length)
        seen = (moved - before).abs().amax(dim=-1)[0] > 1e-6
        expected = torch.arange(ids.shape[1]) >= threshold
        assert torch.equal(seen, expected), f"token {column} with threshold {threshold}"
        checked += bool((~expected).any())
    assert checked > 3 or case in ("same-prompt", "encoder")


def replaced_last_state(model: ComposedModel, name: str, column: int, ids: torch.Tensor, length: int) -> torch.Tensor:
    def replaced(module: nn.Module, args: object, output: object) -> object:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[:, column] = -states[:, column] + 1.0
        return (states, *output[1:]) if isinstance(output, tuple) else states

    last = blocks(model.graph.backend(name).body)[-1]
    handle = last.register_forward_hook(replaced, prepend=True)
    try:
        return logits(model, ids, prompt_lengths=torch.tensor([length]))
    finally:
        handle.remove()


@pytest.mark.parametrize("case", [*READINGS, "gate"])
def test_padding_changes_nothing(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    found = {}
    for side in ("left", "right"):
        ids, mask = encoded(model, PROMPTS, side=side)
        rows = logits(model, ids, mask, prompt_lengths=torch.tensor([1, 5, 4]))
        found[side] = [row[real] for row, real in zip(rows, mask.bool(), strict=True)]
    for row, (text, length) in enumerate(zip(PROMPTS, (1, 5, 4), strict=True)):
        ids, _ = encoded(model, (text,))
        alone = logits(model, ids, prompt_lengths=torch.tensor([length]))[0]
        torch.testing.assert_close(found["left"][row], alone, **TOLERANCE)
        torch.testing.assert_close(found["right"][row], alone, **TOLERANCE)


def test_what_stands_on_padding_does_not_matter(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    ids, mask = encoded(model, PROMPTS)
    real = mask.bool()
    lengths = mask.sum(dim=1)
    before = logits(model, ids, mask, prompt_lengths=lengths)[real]
    after = logits(model, ids.masked_fill(~real, 77), mask, prompt_lengths=lengths)[real]
    torch.testing.assert_close(after, before, **TOLERANCE)


def test_the_order_of_the_declaration_does_not_matter(zoo: Zoo) -> None:
    one, two = zoo.compose(*CASES["mixed"]), zoo.compose(*reversed(CASES["mixed"]))
    two.attachments.load_state_dict(one.attachments.state_dict())
    ids, mask, lengths, _ = decoding_batch(one)
    found = [logits(each, ids, mask, prompt_lengths=lengths) for each in (one, two)]
    torch.testing.assert_close(*found, **TOLERANCE)


def test_several_augmenters_add_up_on_one_layer(zoo: Zoo) -> None:
    """Attached after the last block only, contributions cannot influence each other."""
    model = zoo.compose(Augmenter("same", attach=every(4)), Augmenter("other", attach=every(4)))
    ids, _ = encoded(model, PROMPTS[1:2])
    hidden = {}
    for label, scales in {
        "both": {},
        "same": {"other": 0},
        "other": {"same": 0},
        "none": {"same": 0, "other": 0},
    }.items():
        with model.augmenters(scales), torch.no_grad():
            last: list[torch.Tensor] = []
            handle = model.anchor.model.norm.register_forward_pre_hook(lambda _, args, last=last: last.append(args[0]))
            model(ids)
            handle.remove()
            hidden[label] = last[0]
    torch.testing.assert_close(hidden["both"], hidden["same"] + hidden["other"] - hidden["none"], **TOLERANCE)


# Scales


def test_scales_hold_inside_the_with_only(zoo: Zoo) -> None:
    model = compose(zoo, "diamond")
    ids, _ = encoded(model, PROMPTS[1:2])
    before = logits(model, ids)
    with model.augmenters(other=0, inner=0.5):
        assert not torch.allclose(logits(model, ids), before, atol=1e-3)
    with pytest.raises(InterruptedHereError), model.augmenters(other=0, inner=0.5):
        raise InterruptedHereError
    assert torch.equal(logits(model, ids), before)
    with model.augmenters(other=0.5):
        outer = logits(model, ids)
        with model.augmenters({"inner": 0.0}):
            assert not torch.allclose(logits(model, ids), outer, atol=1e-3)
        assert torch.equal(logits(model, ids), outer)


def test_a_scale_of_one_row_is_its_own(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("other", attach=ATTACH), Augmenter("same", attach=ATTACH))
    ids, mask, lengths, _ = decoding_batch(model)
    scales = [0.0, 1.0, -0.7]
    with model.augmenters(other=torch.tensor(scales)):
        together = logits(model, ids, mask, prompt_lengths=lengths)
    for row, scale in enumerate(scales):
        with model.augmenters(other=scale):
            apart = logits(model, ids, mask, prompt_lengths=lengths)[row]
        real = mask[row].bool()
        torch.testing.assert_close(together[row][real], apart[real], **TOLERANCE)


def test_a_scale_scales_what_is_added(zoo: Zoo) -> None:
    declared = zoo.compose(Augmenter("other", attach=ATTACH, scale=0.3))
    model = zoo.compose(Augmenter("other", attach=ATTACH))
    with torch.no_grad():
        for each in model.attachments.values():
            each.output.weight.mul_(0.3)
    ids, _ = encoded(model, PROMPTS[1:2])
    torch.testing.assert_close(logits(declared, ids), logits(model, ids), **TOLERANCE)


@pytest.mark.parametrize("case", ["same", "other", "nested", "window", "encoder"])
def test_an_augmenter_switched_on_while_decoding_catches_up(zoo: Zoo, case: str) -> None:
    """Attached after the anchor's last block, so that the anchor's own cache does not know of the switch."""
    model = zoo.compose(CASES[case][0].model_copy(update={"attach": every(4)}))
    ids, mask, lengths, width = decoding_batch(model)
    expected = logits(model, ids, mask, prompt_lengths=lengths)
    cache = model.new_cache()
    with model.augmenters(off(model)):
        logits(model, ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths)
        for end in range(width + 1, width + 5):
            plain = logits(model, ids[:, end - 1 : end], mask[:, :end], past_key_values=cache)
        assert not torch.allclose(plain[:, 0], expected[:, width + 3], atol=1e-3)
        cache.crop(-1)
    for end in range(width + 4, width + 9):
        late = logits(model, ids[:, end - 1 : end], mask[:, :end], past_key_values=cache)
        torch.testing.assert_close(late[:, 0], expected[:, end - 1], atol=1e-4, rtol=1e-4)
    with model.augmenters(off(model)):  # and off again, and on again
        end = width + 9
        logits(model, ids[:, end - 1 : end], mask[:, :end], past_key_values=cache)
    late = logits(model, ids[:, end:], mask, past_key_values=cache)
    torch.testing.assert_close(late, expected[:, end:], atol=1e-4, rtol=1e-4)


def test_an_image_switched_on_while_decoding_is_seen(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("eye", attach=every(4), reading="prompt"))
    ids, mask, lengths, width = decoding_batch(model)
    inputs = {"eye": {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))}}
    expected = logits(model, ids, mask, prompt_lengths=lengths, augmenter_inputs=inputs)
    cache = model.new_cache()
    with model.augmenters(eye=0):
        logits(
            model, ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths,
            augmenter_inputs=inputs,
        )  # fmt: skip
    late = logits(model, ids[:, width:], mask, past_key_values=cache)
    torch.testing.assert_close(late, expected[:, width:], atol=1e-4, rtol=1e-4)
    cache = model.new_cache()
    with model.augmenters(eye=0):
        logits(model, ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths)
    with pytest.raises(InputError, match="'eye' is on, but its request began without its inputs"):
        logits(model, ids[:, width:], mask, past_key_values=cache)


# Nothing is left behind


def test_two_threads_do_not_mix(zoo: Zoo) -> None:
    model = compose(zoo, "diamond")
    jobs = [(text, scale) for text in PROMPTS[1:] for scale in (1.0, 0.0, -0.5)]

    def run(text: str, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = encoded(model, (text,))
        with model.augmenters(other=scale):
            generated = model.generate(
                ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            return logits(model, ids, mask), generated

    expected = [run(*job) for job in jobs]
    found: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {place: [] for place in range(len(jobs))}
    barrier = threading.Barrier(len(jobs))

    def work(place: int) -> None:
        barrier.wait(timeout=60)
        for _ in range(2):
            found[place].append(run(*jobs[place]))

    threads = [threading.Thread(target=work, args=(place,)) for place in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, results in found.items():
        assert len(results) == 2
        for result in results:
            assert torch.equal(result[1], expected[place][1])
            torch.testing.assert_close(result[0], expected[place][0], **TOLERANCE)


@pytest.mark.parametrize("where", ["anchor", "augmenter", "attachment"])
def test_an_exception_in_the_middle_leaves_nothing(zoo: Zoo, where: str) -> None:
    model = compose(zoo, "diamond")
    ids, mask, lengths, _ = decoding_batch(model)
    before = logits(model, ids, mask, prompt_lengths=lengths)
    attributes = {name: dict(module.__dict__) for name, module in model.named_modules()}
    broken = {
        "anchor": blocks(model.anchor)[2],
        "augmenter": blocks(model.graph.backend("other").body)[1],
        "attachment": model.attachments["other@3_to_anchor@3"],
    }[where]

    def interrupt(module: nn.Module, args: object) -> None:
        raise InterruptedHereError

    handle = broken.register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptedHereError), model.augmenters(inner=0.5):
        model(ids, mask, prompt_lengths=lengths)
    handle.remove()
    assert torch.equal(logits(model, ids, mask, prompt_lengths=lengths), before)
    # Nor does the broken call reach the anchor by itself, which is told from a run in a context of its own.
    assert torch.equal(anchors_own(model, ids, mask), Context().run(anchors_own, model, ids, mask))
    assert {name: dict(module.__dict__) for name, module in model.named_modules()}.keys() == attributes.keys()
    for name, module in model.named_modules():
        assert module.__dict__.keys() == attributes[name].keys()


def test_bad_input_leaves_nothing(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, mask, lengths, _ = decoding_batch(model)
    before = logits(model, ids, mask, prompt_lengths=lengths)
    with pytest.raises(ValueError):
        model(ids, mask[:, 1:], prompt_lengths=lengths)
    with pytest.raises(ValueError):
        model(ids, mask, prompt_lengths=lengths + 100)
    assert torch.equal(logits(model, ids, mask, prompt_lengths=lengths), before)


def test_the_anchor_by_itself_is_the_anchor(zoo: Zoo) -> None:
    model = compose(zoo, "mixed")
    ids, mask = encoded(model, PROMPTS)
    logits(model, ids, mask, prompt_lengths=mask.sum(dim=1))
    assert torch.equal(anchors_own(model, ids, mask), Context().run(anchors_own, model, ids, mask))


def test_seeds_decide_the_attachments(zoo: Zoo) -> None:
    composition = Composition(name="seeded", anchor="anchor", augmenters=CASES["same"])
    one, two, three = (
        build_model(composition, registry=zoo.registry, seed=seed).attachments.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_random_weights_of_the_tests_matter(zoo: Zoo) -> None:
    model = zoo.compose(*CASES["same"], trained=False)
    ids, _ = encoded(model, PROMPTS[:1])
    before = logits(model, ids)
    train_at_random(model)
    assert not torch.allclose(before, logits(model, ids), atol=1e-2)
