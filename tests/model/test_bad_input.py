"""What a user can get wrong: one clear error each, that says where, what came and what is allowed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from transformers import DynamicCache, PreTrainedTokenizerFast

from calm_graph import Augmenter, Composition, InputError, build_model
from calm_graph.model.composed import ComposedModel
from registry import ModelCard, Registry
from registry.errors import RegistryError
from tests.model.cases import ATTACH, PROMPTS, compose, encoded
from tests.model.pico import CONTEXT, VOCAB_SIZE, Zoo, tokenizer_json


@pytest.fixture
def model(zoo: Zoo) -> ComposedModel:
    return compose(zoo, "other")


@pytest.fixture
def seeing(zoo: Zoo) -> ComposedModel:
    return zoo.compose(Augmenter("eye", attach=ATTACH, reading="prompt"), Augmenter("same", attach=ATTACH))


def rows(model: ComposedModel) -> tuple[torch.Tensor, torch.Tensor]:
    return encoded(model, PROMPTS[:2])


def brief(model: ComposedModel) -> Callable[..., torch.Tensor]:
    return partial(model.generate, max_new_tokens=2, do_sample=False, pad_token_id=0)


PIXELS = {"pixel_values": torch.zeros(2, 3, 16, 16)}


# Tokens


@pytest.mark.parametrize("shape", [(1, 0), (0,), (4,), (1, 2, 3)])
def test_an_input_that_is_no_batch_of_tokens(model: ComposedModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"input_ids: got shape \(.*\); expected \[batch, tokens\], tokens >= 1"):
        model(torch.zeros(shape, dtype=torch.int64))


def test_a_row_that_is_all_padding(model: ComposedModel) -> None:
    ids, mask = rows(model)
    mask[1] = 0
    for call in (model, brief(model)):
        with pytest.raises(InputError, match=r"input_ids\[1\]: the row has no token; give at least"):
            call(ids, attention_mask=mask)


@pytest.mark.parametrize("wrong", [-1, VOCAB_SIZE, 10**6])
def test_ids_out_of_range(model: ComposedModel, wrong: int) -> None:
    ids, _ = rows(model)
    ids[1, 3] = wrong
    message = rf"input_ids\[1, 3\]: got {wrong}, but the anchor's vocabulary has ids 0\.\.{VOCAB_SIZE - 1}"
    for call in (model, brief(model)):
        with pytest.raises(InputError, match=message):
            call(ids)


@pytest.mark.parametrize("shape", [(2, 3), (1, 12), (12,), (2, 1, 12, 12)])
def test_a_mask_of_another_shape(model: ComposedModel, shape: tuple[int, ...]) -> None:
    ids, _ = rows(model)
    with pytest.raises(InputError, match=r"attention_mask: got shape \(.*\), expected \(2, \d+\): one column for each"):
        model(ids, torch.ones(shape, dtype=torch.int64))


def test_a_mask_of_the_new_tokens_only(model: ComposedModel) -> None:
    ids, mask = rows(model)
    cache = model.new_cache()
    model(ids, mask, past_key_values=cache)
    with pytest.raises(InputError, match=rf"got shape \(2, 1\), expected \(2, {ids.shape[1] + 1}\)"):
        model(ids[:, :1], mask[:, -1:], past_key_values=cache)


def test_text_longer_than_the_anchors_context(model: ComposedModel) -> None:
    ids = torch.full((1, CONTEXT + 1), 9)
    message = rf"input_ids: got {CONTEXT + 1} tokens, but anchor 'anchor' has a context of {CONTEXT}; shorten"
    with pytest.raises(InputError, match=message):
        model(ids)
    with pytest.raises(InputError, match=message):
        model.generate(ids[:, : CONTEXT - 2], max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
    mask = torch.ones_like(ids)
    mask[:, :5] = 0  # padding takes no context
    model(ids, mask)


def test_text_longer_than_an_augmenters_context(zoo: Zoo) -> None:
    if "short" not in zoo.registry:
        zoo.add("short", "llama", tokenizer="spaces", max_position_embeddings=30)
    model = zoo.compose(Augmenter("short", attach=ATTACH))
    ids, _ = encoded(model, (PROMPTS[1],))
    before = model(ids).logits
    long = torch.cat([ids, ids, ids], dim=1)
    message = (
        r"augmenter 'short': the text has \d+ of its tokens, but its context holds 30; shorten the prompt or switch"
    )
    with pytest.raises(InputError, match=message):
        model(long)
    with pytest.raises(InputError, match=message):
        model.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(model(ids).logits, before)
    with model.augmenters({"short": 0}):
        assert model(long).logits.isfinite().all()


def test_ids_that_only_the_anchor_has_are_not_read(zoo: Zoo) -> None:
    """Models of one tokenizer may round the number of embeddings up differently."""
    if "small-vocabulary" not in zoo.registry:
        zoo.add("small-vocabulary", "qwen2", tokenizer="bytes", vocab_size=340)
    model = zoo.compose(Augmenter("small-vocabulary", attach=ATTACH))
    ids, _ = encoded(model, PROMPTS[1:2])
    ids[0, -4] = 400
    cache = model.new_cache()
    with torch.no_grad():
        full = model(ids).logits
        steps = [model(ids[:, place : place + 1], past_key_values=cache).logits for place in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-4, rtol=1e-4)


# Prompts and labels


@pytest.mark.parametrize("lengths", [[1, 99], [1, -1]])
def test_prompt_lengths_that_no_row_has(model: ComposedModel, lengths: list[int]) -> None:
    ids, mask = rows(model)
    with pytest.raises(
        InputError, match=rf"prompt_lengths\[1\]: got {lengths[1]}, but the row has \d+ tokens; the first"
    ):
        model(ids, mask, prompt_lengths=torch.tensor(lengths))


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [[1], [1]]])
def test_prompt_lengths_of_another_shape(model: ComposedModel, lengths: list[int]) -> None:
    ids, mask = rows(model)
    with pytest.raises(InputError, match=r"prompt_lengths: got shape \(.*\), expected \(2,\)"):
        model(ids, mask, prompt_lengths=torch.tensor(lengths))


def test_prompt_texts_for_another_number_of_rows(model: ComposedModel) -> None:
    ids, mask = rows(model)
    for call in (model, brief(model)):
        with pytest.raises(InputError, match="prompt_texts: got 3 texts for 2 rows"):
            call(ids, attention_mask=mask, prompt_texts=["a", "b", "c"])


def test_labels_that_supervise_nothing(model: ComposedModel) -> None:
    ids, mask = rows(model)
    with pytest.raises(InputError, match="labels: every label is -100, so there is nothing to learn from this batch"):
        model(ids, mask, labels=torch.full_like(ids, -100))


def test_labels_of_another_shape(model: ComposedModel) -> None:
    ids, mask = rows(model)
    with pytest.raises(InputError, match=rf"labels: got shape \(2, 3\), expected \(2, {ids.shape[1]}\)"):
        model(ids, mask, labels=ids[:, :3])


def test_an_augmenter_of_the_prompt_without_a_prompt_is_a_warning(zoo: Zoo) -> None:
    model = compose(zoo, "other-prompt")
    ids, mask = rows(model)
    with pytest.warns(UserWarning, match=r"augmenters \['other'\] read the prompt only, and no row has one"):
        model(ids, mask)


# Caches and augmenters


def test_a_plain_cache(model: ComposedModel) -> None:
    ids, mask = rows(model)
    with pytest.raises(InputError, match=r"past_key_values: got a DynamicCache, .*use model\.new_cache\(\)"):
        model(ids, mask, past_key_values=DynamicCache())
    with pytest.raises(InputError, match=r"past_key_values: got a DynamicCache; use model\.new_cache\(\)"):
        brief(model)(ids, attention_mask=mask, past_key_values=DynamicCache())


def test_a_static_cache(model: ComposedModel) -> None:
    ids, mask = rows(model)
    with pytest.raises(InputError, match="cache_implementation: got 'static', but a composed model keeps"):
        brief(model)(ids, attention_mask=mask, cache_implementation="static")


def test_an_unknown_augmenter(zoo: Zoo) -> None:
    model = compose(zoo, "diamond")
    message = r"augmenters: got 'otter', but the composition has \['inner', 'other'\]"
    with pytest.raises(InputError, match=message), model.augmenters(otter=0.5):
        pass


@pytest.mark.parametrize("given", [None, {}, {"ear": PIXELS}, {"eye": PIXELS, "same": PIXELS}])
def test_inputs_that_are_missing_or_foreign(seeing: ComposedModel, given: dict[str, dict[str, torch.Tensor]]) -> None:
    ids, mask = rows(seeing)
    message = r"augmenter_inputs: got \[.*\], but the augmenters with inputs of their own are \['eye'\]; give each"
    for call in (seeing, brief(seeing)):
        with pytest.raises(InputError, match=message):
            call(ids, attention_mask=mask, augmenter_inputs=given)


def test_inputs_of_a_foreign_kind(seeing: ComposedModel) -> None:
    ids, mask = rows(seeing)
    for inputs, shown in (({}, r"\[\]"), (PIXELS | {"pixel_mask": torch.ones(2)}, r"\['pixel_values', 'pixel_mask'\]")):
        message = rf"augmenter_inputs\['eye'\]: got {shown}, but the model takes \[.*'pixel_values'.*\]"
        with pytest.raises(InputError, match=message):
            seeing(ids, mask, augmenter_inputs={"eye": inputs})


def test_inputs_for_another_number_of_rows_can_be_mended(seeing: ComposedModel) -> None:
    ids, mask = rows(seeing)
    cache = seeing.new_cache()
    message = r"augmenter_inputs\['eye'\]: got 3 rows, but input_ids has 2"
    with pytest.raises(InputError, match=message):
        seeing(ids, mask, past_key_values=cache, augmenter_inputs={"eye": {"pixel_values": torch.zeros(3, 3, 16, 16)}})
    mended = seeing(ids, mask, past_key_values=cache, augmenter_inputs={"eye": PIXELS}).logits
    assert torch.equal(mended, seeing(ids, mask, augmenter_inputs={"eye": PIXELS}).logits)


# Building


def with_tokenizer(zoo: Zoo, folder: Path, change: object) -> Registry:
    """A registry in which the anchor has another tokenizer; None takes it away."""
    shutil.copytree(zoo.folder / "anchor", folder)
    if change is None:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    else:
        PreTrainedTokenizerFast(tokenizer_object=change).save_pretrained(folder)
    registry = Registry(zoo.registry)
    registry.add(ModelCard(name="anchor", source=f"folder:{folder}"), replace=True)
    return registry


def test_an_anchor_whose_tokens_have_no_bytes_of_their_own(zoo: Zoo, tmp_path: Path) -> None:
    backend = Tokenizer.from_str(tokenizer_json("bytes"))
    backend.decoder = decoders.CTC()
    registry = with_tokenizer(zoo, tmp_path / "anchor", backend)
    composition = Composition(name="x", anchor="anchor", augmenters=(Augmenter("other", attach=ATTACH),))
    with pytest.raises(InputError, match=r"decoder \['CTC'\] is not one of"):
        build_model(composition, registry=registry)


def test_a_model_without_a_tokenizer(zoo: Zoo, tmp_path: Path) -> None:
    registry = with_tokenizer(zoo, tmp_path / "anchor", None)
    composition = Composition(name="x", anchor="anchor", augmenters=(Augmenter("other", attach=ATTACH),))
    with pytest.raises(RegistryError, match="card 'anchor': no usable tokenizer in"):
        build_model(composition, registry=registry)


def test_weights_that_are_missing(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.folder / "other", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").unlink()
    registry = Registry(zoo.registry)
    registry.add(ModelCard(name="other", source=f"folder:{tmp_path / 'other'}"), replace=True)
    composition = Composition(name="x", anchor="anchor", augmenters=(Augmenter("other", attach=ATTACH),))
    with pytest.raises(RegistryError, match=r"card 'other': .* has no \*\.safetensors file"):
        build_model(composition, registry=registry)


@pytest.mark.parametrize("name", ["keys", "values", "type", "forward", "a.b-c_d"])
def test_any_name_of_a_card_will_do(zoo: Zoo, name: str) -> None:
    """Names that torch's containers use for themselves."""
    registry = Registry(zoo.registry)
    registry.add(ModelCard(name=name, source=zoo.registry.get("same").source))
    composition = Composition(name="x", anchor="anchor", augmenters=(Augmenter(name, attach=ATTACH),))
    model = build_model(composition, registry=registry, seed=0)
    ids, mask = rows(model)
    with model.augmenters({name: 0.5}):
        assert model(ids, mask).logits.isfinite().all()
