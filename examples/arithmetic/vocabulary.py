"""Tokenizers of the demo's models (no two alike), and the number features that their embeddings start from."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from examples.arithmetic.data import HIGHEST_PRICE

HIGHEST_NUMBER_TOKEN = 399
NONE = "<none>"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def anchor_tokenizer() -> PreTrainedTokenizerFast:
    """Return the anchor's tokenizer: a number 0..399 is one token, and so is every letter, operator and mark."""
    marks = [*string.ascii_lowercase, *"+-*=;(), .?"]
    numbers = [str(number) for number in range(HIGHEST_NUMBER_TOKEN + 1)]
    return _word_level([*SPECIAL, *marks, *numbers], pattern=r"[1-3][0-9][0-9]|[1-9][0-9]|[\s\S]")


def price_tokenizer(keys: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return an augmenter's tokenizer: each of its keys is one token, other words are `<unk>`, prices are 1..99."""
    numbers = [str(number) for number in range(HIGHEST_PRICE + 1)]
    return _word_level([*SPECIAL, NONE, *"+-=;", *numbers, *sorted(keys)], pattern=r"[a-z]+|[0-9]+|[\s\S]")


def number_features(numbers: Tensor, width: int) -> Tensor:
    """Return sines and cosines of numbers, where an embedding of numbers starts.

    Args:
        numbers: [N], int64.
        width: Size of the embedding.

    Returns:
        [N, width] float32, about unit variance per entry.
    """
    # Decimal periods show digits, long ones show size; random starts reach the same end many times slower.
    periods = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 1000.0)
    angles = 2 * math.pi * numbers.double()[:, None] / torch.tensor(periods, dtype=torch.float64)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    rotation = torch.randn(waves.shape[1], width, generator=torch.Generator().manual_seed(0))
    return waves @ rotation / math.sqrt(len(periods))


def _word_level(tokens: list[str], *, pattern: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
