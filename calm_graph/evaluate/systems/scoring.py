"""How likely completions are: token ids, batches and sums that are the same for every kind of system."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calm_graph.data.rows import Place, Source
from calm_graph.data.samples import Batch, Sample, collate
from calm_graph.errors import EvaluationError, InputError
from calm_graph.evaluate.systems.base import Done
from calm_graph.model.prompts import nonempty_prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOURCE = Source("texts", "rows")

MAX_POSITIONS = 4_096
"""The most positions of a batch, padding included."""

MAX_LOGITS = 2**26
"""The most logits of a batch: a quarter of a gigabyte in float32."""

_ROWS_OF_LOGITS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a completion is.

    Args:
        nats: Negative log-likelihood of its tokens.
        is_greedy: Whether each of them is the likeliest.
    """

    nats: float
    is_greedy: bool


class TokenScorer(ABC):
    """The half of a `System` that scores, for those that can score token by token."""

    def score(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[float]:
        """See `System.score`."""
        return [score.nats for score in self.score_tokens(prompts, completions, done=done)]

    @abstractmethod
    def score_tokens(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[Score]:
        """Tell how likely completions are, and whether greedy decoding would give them.

        Args:
            prompts: Texts.
            completions: What follows each.
            done: Hears of every completion that is scored.

        Returns:
            The scores.

        Raises:
            EvaluationError: A text is too long, or has no token.
        """


def scored_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """See `nonempty_prompt_ids`."""
    try:
        return nonempty_prompt_ids(tokenizer, prompt)
    except InputError as error:
        raise EvaluationError(str(error)) from None


def make_samples(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[Sample]:
    """Tokenise pairs: see `make_sample`."""
    pairs = enumerate(zip(prompts, completions, strict=True))
    return [make_sample(tokenizer, prompt, completion, index=index) for index, (prompt, completion) in pairs]


def make_sample(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, *, index: int) -> Sample:
    """Tokenise a prompt and what follows it separately, as training does, without the end token.

    Args:
        tokenizer: Of the model that is scored.
        prompt: What is read.
        completion: What is scored.
        index: Of the pair, for errors.

    Returns:
        The sample.

    Raises:
        EvaluationError: The completion has no token.
    """
    before = scored_prompt_ids(tokenizer, prompt)
    after = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    if not after:
        raise EvaluationError(f"completions[{index}]: got {completion!r}, which has no token to score")
    return Sample(
        input_ids=np.array(before + after, dtype=np.int32),
        prompt_length=len(before) if prompt else 0,
        prompt_text=prompt,
        completion_bytes=len(completion.encode()),
        place=Place(_SOURCE, index),
        augmenter_inputs={},
    )


def score_all(
    samples: Sequence[Sample],
    logits_of: Callable[[Batch], Tensor],
    *,
    vocab_size: int,
    pad_token_id: int,
    done: Done,
    batch_size: int,
) -> list[Score]:
    """Score samples in batches of similar lengths.

    Args:
        samples: Of any lengths.
        logits_of: Runs a batch: logits float [1, K, V] or [K, V] of the positions that predict a label, row by row.
        vocab_size: V.
        pad_token_id: Fills rows.
        done: Hears of every sample that is scored.
        batch_size: The most rows of a batch.

    Returns:
        The scores, in the order of the samples.
    """
    scores: list[Score | None] = [None] * len(samples)
    for indices in batches(samples, vocab_size=vocab_size, batch_size=batch_size):
        batch = collate([samples[index] for index in indices], pad_token_id=pad_token_id)
        with torch.inference_mode():
            logits_KV = logits_of(batch)
            found = _row_scores(logits_KV.view(-1, logits_KV.shape[-1]), batch["labels"].to(logits_KV.device))
        for index, score in zip(indices, found, strict=True):
            scores[index] = score
            done(index)
    return [score for score in scores if score is not None]


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the positions whose next token is a label."""
    rows_K, columns_K = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    return rows_K, columns_K


def draw_seed(seed: int, prompt: str) -> int:
    """Return the seed of a prompt's draws: the same whatever other prompts are answered beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt}".encode()).digest()[:7])


def batches(samples: Sequence[Sample], *, vocab_size: int, batch_size: int) -> Iterator[list[int]]:
    """Share out samples into batches of similar lengths that fit in memory, the longest first.

    Args:
        samples: Of any lengths.
        vocab_size: Logits of each position that predicts a label.
        batch_size: The most rows of a batch.

    Yields:
        Places of samples.
    """
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].input_ids), reverse=True)
    batch: list[int] = []
    width = num_logits = 0
    for index in order:
        sample = samples[index]
        width = max(width, len(sample.input_ids))
        num_logits += sample.num_supervised * vocab_size
        too_large = width * (len(batch) + 1) > MAX_POSITIONS or num_logits > MAX_LOGITS or len(batch) == batch_size
        if batch and too_large:
            yield batch
            batch, width, num_logits = [], len(sample.input_ids), sample.num_supervised * vocab_size
        batch.append(index)
    if batch:
        yield batch


def _row_scores(logits_KV: Tensor, labels_BT: Tensor) -> list[Score]:
    rows_K, columns_K = supervised_positions(labels_BT)
    targets_K = labels_BT[rows_K, columns_K + 1]
    nats_B = torch.zeros(len(labels_BT), dtype=torch.float64, device=logits_KV.device)
    misses_B = torch.zeros(len(labels_BT), dtype=torch.int64, device=logits_KV.device)
    # A few positions at a time: log-softmax takes as much room as the logits again.
    for first in range(0, len(rows_K), _ROWS_OF_LOGITS_AT_ONCE):
        piece = slice(first, first + _ROWS_OF_LOGITS_AT_ONCE)
        logits, targets = logits_KV[piece].float(), targets_K[piece]
        nats_B.index_add_(0, rows_K[piece], F.cross_entropy(logits, targets, reduction="none").double())
        misses_B.index_add_(0, rows_K[piece], (logits.argmax(dim=-1) != targets).long())
    return [Score(nats, misses == 0) for nats, misses in zip(nats_B.tolist(), misses_B.tolist(), strict=True)]
