"""Decoding with a cache gives the numbers of the full forward, whatever is composed and however the tokens arrive."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from transformers import TextIteratorStreamer

from calm_graph import Augmenter
from calm_graph.model.cache import ComposedCache
from calm_graph.model.composed import ComposedModel
from tests.model.cases import ATTACH, CASES, PROMPTS, compose, decoding_batch, encoded, off
from tests.model.pico import Zoo

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def step(model: ComposedModel, cache: ComposedCache, start: int, end: int) -> torch.Tensor:
    """Logits of columns start..end of the batch, decoded after those before."""
    ids, mask, lengths, _ = decoding_batch(model)
    with torch.no_grad():
        output = model(ids[:, start:end], mask[:, :end], past_key_values=cache, prompt_lengths=lengths)
    return output.logits


def full(model: ComposedModel) -> torch.Tensor:
    ids, mask, lengths, _ = decoding_batch(model)
    with torch.no_grad():
        return model(ids, mask, prompt_lengths=lengths).logits


def decoded(model: ComposedModel, ends: Iterable[int]) -> tuple[torch.Tensor, ComposedCache]:
    cache = model.new_cache()
    pieces = [step(model, cache, start, end) for start, end in itertools.pairwise([0, *ends])]
    return torch.cat(pieces, dim=1), cache


def check(model: ComposedModel, ends: Iterable[int]) -> None:
    real = decoding_batch(model)[1].bool()
    expected = full(model)
    torch.testing.assert_close(decoded(model, ends)[0][real], expected[real], **TOLERANCE)
    with model.augmenters(off(model)):
        assert (full(model) - expected)[real].abs().amax(dim=-1).min() > 1e-3, "the augmenters must matter everywhere"


@pytest.mark.parametrize("case", CASES)
def test_token_by_token_is_the_full_forward(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, _, _, width = decoding_batch(model)
    check(model, range(width, ids.shape[1] + 1))


@pytest.mark.parametrize("case", ["same", "other", "diamond", "mixed", "window", "open", "open-window", "open-nested"])
def test_chunk_by_chunk_is_the_full_forward(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, _, _, width = decoding_batch(model)
    check(model, [*range(width + 2, ids.shape[1], 3), ids.shape[1]])


@pytest.mark.parametrize("anchor", ["window-anchor", "anchor-with-spaces"])
@pytest.mark.parametrize("case", ["same", "other-causal"])
def test_another_anchor(zoo: Zoo, anchor: str, case: str) -> None:
    model = compose(zoo, case, anchor=anchor)
    ids, _, _, width = decoding_batch(model)
    check(model, [*range(width, width + 9), ids.shape[1]])


@pytest.mark.parametrize("case", ["other", "mixed", "open"])
def test_without_a_prompt_everything_is_completion(zoo: Zoo, case: str) -> None:
    model = zoo.compose(*(augmenter for augmenter in CASES[case] if augmenter.reading == "stream"))
    ids, mask = encoded(model, PROMPTS)
    start = int((mask == 0).sum(dim=1).max())  # the first call must hold a token of every row
    cache = model.new_cache()
    with torch.no_grad():
        expected = model(ids, mask).logits
        pieces = [model(ids[:, : start + 1], mask[:, : start + 1], past_key_values=cache).logits]
        pieces += [
            model(ids[:, end - 1 : end], mask[:, :end], past_key_values=cache).logits
            for end in range(start + 2, ids.shape[1] + 1)
        ]
    real = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], expected[real], **TOLERANCE)


@pytest.mark.parametrize("case", ["same", "other", "other-prompt", "diamond", "rotary", "window", "open-nested"])
def test_rejected_tokens_leave_no_trace(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, _, _, width = decoding_batch(model)
    end = width + 9
    cache = model.new_cache()
    step(model, cache, 0, width)
    with torch.no_grad():  # a draft that is wrong, then the right tokens
        wrong, mask = ids[:, width:end].flip(0), decoding_batch(model)[1]
        model(wrong, mask[:, :end], past_key_values=cache)
    cache.crop(-7)
    later = torch.cat([step(model, cache, width + 2, end), step(model, cache, end, end + 4)], dim=1)
    mended = ids.clone()
    mended[:, width : width + 2] = wrong[:, :2]
    with torch.no_grad():
        expected = model(mended, mask, prompt_lengths=decoding_batch(model)[2]).logits
    torch.testing.assert_close(later, expected[:, width + 2 : end + 4], **TOLERANCE)


def test_cropping_to_the_beginning_of_a_text_without_prompt(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("other", attach=ATTACH))
    ids, _ = encoded(model, PROMPTS[1:2])
    cache = model.new_cache()
    with torch.no_grad():
        model(ids.flip(1), past_key_values=cache)
        cache.crop(-ids.shape[1])
        torch.testing.assert_close(model(ids, past_key_values=cache).logits, model(ids).logits, **TOLERANCE)


def test_cropping_into_the_prompt_is_refused_and_changes_nothing(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    width = decoding_batch(model)[3]
    _, cache = decoded(model, [width, width + 2])
    with pytest.raises(ValueError, match="cannot crop 3 tokens: they reach into the sealed prompt"):
        cache.crop(-3)
    torch.testing.assert_close(
        step(model, cache, width + 2, width + 6), full(model)[:, width + 2 : width + 6], **TOLERANCE
    )


ROWS = [2, 0, 0, 1]


@pytest.mark.parametrize("case", ["same", "other", "nested", "mixed", "open"])
@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices"])
def test_rows_of_a_cache_can_be_chosen_and_repeated(zoo: Zoo, case: str, how: str) -> None:
    model = compose(zoo, case)
    ids, mask, _, width = decoding_batch(model)
    _, cache = decoded(model, [width, width + 3])
    getattr(cache, how)(torch.tensor(ROWS))
    expected = full(model)[ROWS]
    with torch.no_grad():
        for end in range(width + 4, width + 12):
            logits = model(ids[ROWS, end - 1 : end], mask[ROWS, :end], past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], expected[:, end - 1], **TOLERANCE)


def test_rows_of_a_cache_can_be_repeated(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, mask, _, width = decoding_batch(model)
    _, cache = decoded(model, [width])
    cache.batch_repeat_interleave(2)
    rows = [0, 0, 1, 1, 2, 2]
    with torch.no_grad():
        logits = model(ids[rows, width:], mask[rows], past_key_values=cache).logits
    torch.testing.assert_close(logits, full(model)[rows, width:], **TOLERANCE)


def test_a_cache_is_for_one_request(zoo: Zoo) -> None:
    model = compose(zoo, "same")
    with pytest.raises(ValueError, match="belongs to one request"):
        model.new_cache().reset()


GENERATED = ["same", "other", "other-prompt-causal", "nested", "mixed", "open"]
DETERMINISTIC = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
    "penalty": {"repetition_penalty": 1.3},
}


@pytest.mark.parametrize("case", GENERATED)
@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_generate_with_and_without_cache(zoo: Zoo, case: str, mode: str) -> None:
    model = compose(zoo, case)
    ids, mask = encoded(model, PROMPTS[:2])
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0, **DETERMINISTIC[mode]}
    cached = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, **options, use_cache=False))


@pytest.mark.parametrize("case", GENERATED)
def test_other_ways_of_generating_give_the_greedy_tokens(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, mask = encoded(model, PROMPTS[:2])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    greedy = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(greedy, model.generate(ids, attention_mask=mask, **options, prefill_chunk_size=3))
    alone = model.generate(ids[1:], attention_mask=mask[1:], **options)
    looked_up = model.generate(ids[1:], attention_mask=mask[1:], **options, prompt_lookup_num_tokens=3)
    assert torch.equal(alone, looked_up)
    assert torch.equal(greedy[1:, : alone.shape[1]], alone)


def test_generate_does_what_a_loop_of_full_forwards_does(zoo: Zoo) -> None:
    model = compose(zoo, "diamond")
    ids, mask = encoded(model, PROMPTS)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None)
    lengths = mask.sum(dim=1)
    with torch.no_grad():
        for _ in range(10):
            newest = model(ids, mask, prompt_lengths=lengths).logits[:, -1].argmax(dim=-1, keepdim=True)
            ids, mask = torch.cat([ids, newest], dim=1), torch.cat([mask, torch.ones_like(newest)], dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize("case", ["same", "other"])
def test_sampling_with_a_seed(zoo: Zoo, case: str) -> None:
    model = compose(zoo, case)
    ids, mask = encoded(model, PROMPTS[:2])
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3, "pad_token_id": 0}
    found = []
    for use_cache in (True, False, True):
        torch.manual_seed(3)
        found.append(model.generate(ids, attention_mask=mask, **options, use_cache=use_cache))
    assert found[0].shape[0] == 6
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_streamer_gets_the_text(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, _ = encoded(model, PROMPTS[:1])
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, timeout=10)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model.generate(ids, **options, streamer=streamer)
    expected = model.generate(ids, **options)[0, ids.shape[1] :]
    assert "".join(streamer) == model.tokenizer.decode(expected)


def test_generate_can_go_on_with_its_cache(zoo: Zoo) -> None:
    model = compose(zoo, "other")
    ids, mask = encoded(model, PROMPTS[1:2])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    once = model.generate(ids, attention_mask=mask, max_new_tokens=10, **options)
    cache = model.new_cache()
    first = model.generate(ids, attention_mask=mask, max_new_tokens=4, past_key_values=cache, **options)
    second = model.generate(
        first, attention_mask=torch.ones_like(first), max_new_tokens=6, past_key_values=cache, **options
    )
    assert torch.equal(once, second)


def test_generate_takes_the_prompt_as_text(zoo: Zoo) -> None:
    model = compose(zoo, "encoder")
    ids, mask = encoded(model, PROMPTS[:2])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    texts = ["price of apples", None]
    told = model.generate(ids, attention_mask=mask, prompt_texts=texts, **options)
    assert torch.equal(told, model.generate(ids, attention_mask=mask, prompt_texts=texts, **options, use_cache=False))
    with torch.no_grad():
        lengths = mask.sum(dim=1)
        read = model(ids, mask, prompt_lengths=lengths, prompt_texts=texts).logits
        default = model(ids, mask, prompt_lengths=lengths).logits
    assert not torch.allclose(read[0], default[0], atol=1e-3)
    torch.testing.assert_close(read[1], default[1], **TOLERANCE)


@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_generate_from_an_image(zoo: Zoo, mode: str) -> None:
    model = zoo.compose(Augmenter("eye", attach=ATTACH, reading="prompt"), Augmenter("other", attach=ATTACH))
    ids, mask = encoded(model, PROMPTS[:2])
    generator = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **DETERMINISTIC[mode]}
    inputs = {"eye": {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}}
    seen = model.generate(ids, attention_mask=mask, augmenter_inputs=inputs, **options)
    assert torch.equal(
        seen, model.generate(ids, attention_mask=mask, augmenter_inputs=inputs, use_cache=False, **options)
    )
    assert "eye" in inputs and inputs["eye"]["pixel_values"].shape[0] == 2
