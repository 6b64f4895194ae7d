"""Pico models with tokenizers, saved as folders and registered, for tests of composed models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from calm_graph import Augmenter, Composition
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from registry import ModelCard, Registry
from tests.registry.pico import make_config

CORPUS = [
    "Hello world, this is a small corpus of text. It has numbers like 12 and 345!",
    "The quick brown fox jumps over the lazy dog; don't stop (really) now.\n\nNew line here: ok?",
    "price of apples is 3 and price of pears is 14, so 3 + 14 = 17",
    "Grüße aus Köln: schöne Straße. Ελληνικά ภาษาไทย 你好，世界 😀",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCAB_SIZE = 448
CONTEXT = 192
ENCODERS = ("bert", "vit")


@cache
def tokenizer_json(kind: str) -> str:
    """Return a tokenizer of a family.

    `bytes`: GPT-2's; `spaces`: Gemma's (adds <s>); `words`: BERT's (adds <s> and </s>); `prepended`: Llama 2's, which
    puts a space before the first word; `metaspace`: the same by a pre-tokenizer; `level`: whole words, no decoder.
    """
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        return tokenizer.to_str()
    if kind == "spaces":
        trained = Tokenizer(models.BPE())
        trained.normalizer = normalizers.Replace(" ", "▁")
        trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        trained.train_from_iterator(
            CORPUS[:3], trainers.BpeTrainer(vocab_size=140, special_tokens=SPECIAL, show_progress=False)
        )
        model = json.loads(trained.to_str())["model"]
        vocab = dict(model["vocab"])
        for byte in range(256):
            vocab[f"<0x{byte:02X}>"] = len(vocab)
        merges = [tuple(pair) for pair in model["merges"]]
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
        return tokenizer.to_str()
    if kind == "prepended":
        specification = json.loads(tokenizer_json("spaces"))
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        specification["normalizer"] = {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, space],
        }
        specification["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return json.dumps(specification)
    if kind == "metaspace":
        specification = json.loads(tokenizer_json("spaces"))
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        specification |= {"normalizer": None, "pre_tokenizer": metaspace}
        specification["decoder"] = {
            "type": "Sequence",
            "decoders": [metaspace, {"type": "ByteFallback"}, {"type": "Fuse"}],
        }
        return json.dumps(specification)
    if kind == "level":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
        return tokenizer.to_str()
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer.to_str()


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json(kind)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )


class Zoo:
    """Makes models on demand in a folder and registers them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry()

    def add(
        self, name: str, architecture: str = "llama", *, tokenizer: str = "bytes", seed: int = 0, **sizes: Any
    ) -> ModelCard:
        config = make_config(architecture)
        text = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, **sizes}
        for key, value in text.items():
            if hasattr(config, key) or key in sizes:
                setattr(config, key, value)
        torch.manual_seed(seed)
        factory = AutoModel if architecture in ENCODERS else AutoModelForCausalLM
        model = factory.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(self.folder / name)
        if architecture != "vit":
            make_tokenizer(tokenizer).save_pretrained(self.folder / name)
        modality = "image" if architecture == "vit" else "text"
        return self.registry.add(ModelCard(name=name, source=f"folder:{self.folder / name}", modality=modality))

    def compose(
        self, *augmenters: Augmenter, anchor: str = "anchor", name: str = "composition", trained: bool = True
    ) -> ComposedModel:
        """Build a model; `trained` gives the attachments weights that make them matter."""
        composition = Composition(name=name, anchor=anchor, augmenters=augmenters)
        model = build_model(composition, registry=self.registry, seed=0)
        if trained:
            train_at_random(model)
        return model


def train_at_random(model: ComposedModel, seed: int = 0) -> None:
    """Stand in for training: output projections and gates that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.attachments.named_parameters():
            if name.endswith(("output.weight", "gate")):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
