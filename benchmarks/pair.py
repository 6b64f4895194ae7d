"""The pair of models that the training benchmarks compose: random Gemmas, a larger and a smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from calm_graph.declare.composition import Attachment, Augmenter, Composition
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from registry import ModelCard, Registry

VOCAB_SIZE = 8192
ANCHOR = {"hidden_size": 512, "num_hidden_layers": 12}
AUGMENTER = {"hidden_size": 256, "num_hidden_layers": 8}
ATTACHED = ((0, 0), (2, 3), (4, 7), (7, 11))
"""(augmenter layer, anchor layer), evenly spaced, first and last included."""
BATCH_SIZE = 8
NUM_TOKENS = 128


def make_pair(folder: Path, *, text: Sequence[str] = ()) -> ComposedModel:
    """Write both models and compose them.

    Args:
        folder: Where they are written.
        text: What their tokenizer learns from; without any it knows bytes only.

    Returns:
        A model in float32 with fresh attachments.
    """
    registry = Registry()
    tokenizer = _tokenizer(text)
    for seed, (name, sizes) in enumerate((("anchor", ANCHOR), ("augmenter", AUGMENTER))):
        torch.manual_seed(seed)
        model = GemmaForCausalLM(gemma_config(sizes))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        registry.add(ModelCard(name=name, source=f"folder:{folder / name}"))
    attach = [Attachment(augmenter_layer=below, anchor_layer=above) for below, above in ATTACHED]
    composition = Composition(name="pair", anchor="anchor", augmenters=[Augmenter("augmenter", attach=attach)])
    return build_model(composition, registry=registry, seed=0)


def gemma_config(sizes: dict[str, int]) -> GemmaConfig:
    """What both models share."""
    shared = {
        "vocab_size": VOCAB_SIZE,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2048,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    config: GemmaConfig = GemmaConfig.from_dict({**shared, **sizes})
    return config


def random_ids(num_rows: int = BATCH_SIZE, num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    """Token ids, int64 [B, T]."""
    return torch.randint(3, VOCAB_SIZE, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))


def _tokenizer(text: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
