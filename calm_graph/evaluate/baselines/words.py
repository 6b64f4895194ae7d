"""How likely each word of a completion is to one model: what models with different tokenizers can be compared by."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from calm_graph.data.rows import Place, Source
from calm_graph.data.samples import Sample, collate
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.evaluate.systems.scoring import batches, scored_prompt_ids, supervised_positions

_SOURCE = Source("texts", "rows")
_WORD = re.compile(r"\s*\S+|\s+$")


def words_of(text: str) -> list[str]:
    """Return the words of a text, each with the white space before it; together they are the text."""
    return _WORD.findall(text)


def word_nats(system: PlainSystem, prompts: Sequence[str], completions: Sequence[str]) -> list[torch.Tensor]:
    """Tell how likely each word of completions is, given all the text before it.

    Every word is tokenised on its own, so that the tokens before it do not depend on it.

    Args:
        system: The model.
        prompts: Texts.
        completions: What follows each.

    Returns:
        For each completion, nats float64 [number of its words].

    Raises:
        EvaluationError: A text is too long, or a completion has no words.
    """
    rows = [
        _row(system, prompt, completion, index)
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    samples = [sample for sample, _ in rows]
    nats: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for indices in batches(samples, vocab_size=system.vocab_size, batch_size=system.batch_size):
        batch = collate([samples[index] for index in indices], pad_token_id=system.pad_token_id)
        labels_BT = batch["labels"].to(system.model.device)
        rows_K, columns_K = supervised_positions(labels_BT)
        with torch.inference_mode():
            logits_KV = system.logits(batch)[0].float()
            nats_K = F.cross_entropy(logits_KV, labels_BT[rows_K, columns_K + 1], reduction="none").double().cpu()
        words = [torch.tensor(rows[index][1]) for index in indices]
        for index, words_K, own_K in zip(indices, words, nats_K.split([len(each) for each in words]), strict=True):
            nats[index] = torch.zeros(int(words_K[-1]) + 1, dtype=torch.float64).index_add_(0, words_K, own_K)
    return nats


def _row(system: PlainSystem, prompt: str, completion: str, index: int) -> tuple[Sample, list[int]]:
    """A prompt and its completion as a sample, and for each token of the completion the word it belongs to."""
    before = scored_prompt_ids(system.tokenizer, prompt)
    after: list[int] = []
    words: list[int] = []
    for number, word in enumerate(words_of(completion)):
        own = list(system.tokenizer(word, add_special_tokens=False)["input_ids"])
        after, words = after + own, words + [number] * len(own)
    if not words:
        raise EvaluationError(f"completions[{index}]: got {completion!r}, which has no word to score")
    if len(before + after) > system.context_length:
        raise EvaluationError(
            f"{system.name}: prompts[{index}]: {len(before + after)} tokens with the completion, but its context is "
            f"{system.context_length}; use fewer examples or shorter rows"
        )
    sample = Sample(
        input_ids=np.array(before + after, dtype=np.int32),
        prompt_length=len(before),
        prompt_text=prompt,
        completion_bytes=len(completion.encode()),
        place=Place(_SOURCE, index),
        augmenter_inputs={},
    )
    return sample, words
