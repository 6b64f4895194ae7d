"""Every architecture as an anchor (where causal) and as an augmenter, pico models through the real loading path."""

from __future__ import annotations

import pytest
import torch

from calm_graph import Augmenter, every
from calm_graph.model.composed import ComposedModel
from tests.model.pico import ENCODERS, Zoo

DECODERS = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon",
    "bloom",
    "olmo2",
    "stablelm",
    "starcoder2",
    "smollm3",
)


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("architectures"))
    for seed, architecture in enumerate((*DECODERS, *ENCODERS)):
        zoo.add(architecture, architecture, tokenizer="words" if architecture == "bert" else "bytes", seed=seed)
    zoo.add("reading", "llama", tokenizer="spaces", seed=99)
    return zoo


def two_rows(model: ComposedModel) -> dict[str, torch.Tensor]:
    texts = ["Hello world, this is a fox.", "The price of pears is 14, so don't stop; ok"]
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    return dict(encoded)


def check_cached_equals_full(
    model: ComposedModel, prompt: int = 8, **inputs: dict[str, dict[str, torch.Tensor]]
) -> None:
    rows = two_rows(model)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    lengths = mask[:, :prompt].sum(dim=1)
    cache = model.new_cache()
    with torch.no_grad():
        full = model(ids, mask, prompt_lengths=lengths, **inputs).logits
        steps = [
            model(ids[:, :prompt], mask[:, :prompt], past_key_values=cache, prompt_lengths=lengths, **inputs).logits
        ]
        for end in range(prompt + 1, ids.shape[1] + 1):
            steps.append(model(ids[:, end - 1 : end], mask[:, :end], past_key_values=cache).logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(steps, dim=1)[real], full[real], atol=2e-4, rtol=1e-4)


def check_augmenter_matters_and_learns(model: ComposedModel, **inputs: dict[str, dict[str, torch.Tensor]]) -> None:
    rows = two_rows(model)
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    labels[:, :10] = -100
    loss = model(**rows, labels=labels, **inputs).loss
    loss.backward()
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert all(name.startswith("graph.edges.attachments.") for name in trainable)
    assert all(each.grad is not None and each.grad.isfinite().all() for each in trainable.values())
    assert any(each.grad.abs().sum() > 0 for each in trainable.values())
    with torch.no_grad(), model.augmenters(dict.fromkeys({edge.source for edge in model.plan.edges}, 0.0)):
        assert (model(**rows, labels=labels, **inputs).loss - loss).abs() > 1e-4


@pytest.mark.parametrize("architecture", DECODERS)
def test_as_anchor(architectures: Zoo, architecture: str) -> None:
    reading = Augmenter("reading", attach=every(2))
    fresh = architectures.compose(reading, anchor=architecture, trained=False)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(fresh(ids).logits, fresh.anchor(input_ids=ids).logits)
    model = architectures.compose(reading, anchor=architecture)
    check_cached_equals_full(model)
    check_augmenter_matters_and_learns(model)
    rows = two_rows(model)
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**rows, **greedy), model.generate(**rows, **greedy, use_cache=False))


@pytest.mark.parametrize("reading", ["stream", "prompt"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_as_augmenter(architectures: Zoo, architecture: str, reading: str) -> None:
    # The anchor's tokenizer is the other one, so that rows grow by different numbers of augmenter tokens.
    model = architectures.compose(Augmenter(architecture, attach=every(2), reading=reading), anchor="reading")
    check_cached_equals_full(model)
    check_augmenter_matters_and_learns(model)


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gemma3_text", "opt"])
def test_as_augmenter_with_the_anchors_tokenizer(architectures: Zoo, architecture: str) -> None:
    anchor = "qwen2" if architecture != "qwen2" else "llama"
    check_cached_equals_full(architectures.compose(Augmenter(architecture, attach=every(2)), anchor=anchor))


def test_text_encoder_as_augmenter(architectures: Zoo) -> None:
    model = architectures.compose(Augmenter("bert", attach=every(2), reading="prompt"), anchor="llama")
    check_cached_equals_full(model)
    check_augmenter_matters_and_learns(model)


def test_image_encoder_as_augmenter(architectures: Zoo) -> None:
    model = architectures.compose(Augmenter("vit", attach=every(2), reading="prompt"), anchor="llama")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = {"augmenter_inputs": {"vit": {"pixel_values": pixels}}}
    check_cached_equals_full(model, **inputs)
    check_augmenter_matters_and_learns(model, **inputs)
    rows = two_rows(model)
    beams = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    seen = model.generate(**rows, **inputs, **beams)
    assert torch.equal(seen, model.generate(**rows, **inputs, **beams, use_cache=False))


def test_augmenter_is_loaded_only_as_deep_as_it_is_tapped(architectures: Zoo) -> None:
    attach = [{"augmenter_layer": 1, "anchor_layer": 2}]
    model = architectures.compose(Augmenter("reading", attach=attach), anchor="llama")
    (backend,) = model.graph.backends.values()
    assert len(backend.body.layers) == 2
    assert not hasattr(backend.body, "lm_head")
