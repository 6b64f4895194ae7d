"""Draw the next token of every row, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calm_graph.generate.sampling import Sampling

_NUM_LIKELIEST = 1024
"""Of so many tokens top_p is tried first: sorting a whole vocabulary costs more than a small model's step."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What decides one row's next token.

    Args:
        sampling: What its user set.
        seed: Of the answer.
        prompt_ids: Of the prompt.
        ids: Of the answer so far.
        end_ids: Tokens that may not be drawn yet, because the answer is too short to end.
    """

    sampling: Sampling
    seed: int
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    end_ids: frozenset[int] = frozenset()


def draw(logits_BV: torch.Tensor, rows: Sequence[Draw]) -> list[int]:
    """Choose a token for each row.

    A token depends on the row's logits, seed and place in the answer alone: not on the rows beside it, nor on how many
    tokens were drawn by this process, so that another one can go on with an answer.

    Args:
        logits_BV: float, of the head.
        rows: In the same order.

    Returns:
        Token ids.
    """
    likeliest: list[int] = logits_BV.argmax(dim=-1).tolist()
    return [
        likeliest[place] if _is_plain(row) else _draw(logits_BV[place].float(), row) for place, row in enumerate(rows)
    ]


def _is_plain(row: Draw) -> bool:
    """Whether the likeliest token is the answer, as nothing changes the order of logits."""
    sampling = row.sampling
    return (
        sampling.temperature == 0
        and sampling.repetition_penalty == 1
        and sampling.presence_penalty == sampling.frequency_penalty == 0
        and not sampling.logit_bias
        and not row.end_ids
    )


def _draw(logits_V: torch.Tensor, row: Draw) -> int:
    logits_V = _adjusted(logits_V, row)
    sampling = row.sampling
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(logits_V / sampling.temperature, dim=-1)
    probabilities_K, ids_K = _kept(probabilities_V, sampling)
    generator = torch.Generator().manual_seed(_mixed(row.seed, len(row.ids)))
    point = torch.rand((), generator=generator, dtype=torch.float64) * probabilities_K.sum().item()
    place = int(torch.searchsorted(probabilities_K.double().cumsum(dim=0), point.to(probabilities_K.device)))
    place = min(place, len(probabilities_K) - 1)  # rounding
    return place if ids_K is None else int(ids_K[place])


def _adjusted(logits_V: torch.Tensor, row: Draw) -> torch.Tensor:
    sampling = row.sampling
    logits_V = logits_V.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt_ids, *row.ids}), device=logits_V.device)
        found = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = torch.where(found > 0, found / penalty, found * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and row.ids:
        ids, counts = torch.tensor(list(row.ids), device=logits_V.device).unique(return_counts=True)
        logits_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for id, bias in sampling.logit_bias.items():
        logits_V[id] += bias
    if row.end_ids:
        logits_V[list(row.end_ids)] = float("-inf")
    return logits_V


def _kept(probabilities_V: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Probabilities to draw from and their tokens, the likeliest first; without limits all, in the vocabulary's order.

    `top_k`, then `top_p` of what that leaves, then `min_p`, as in vLLM and transformers.
    """
    if not sampling.top_k and sampling.top_p == 1 and not sampling.min_p:
        return probabilities_V, None
    size = len(probabilities_V)
    count = min(sampling.top_k or (_NUM_LIKELIEST if sampling.top_p < 1 else size), size)
    found_K, ids_K = probabilities_V.topk(count)
    whole = found_K.sum() if sampling.top_k else probabilities_V.sum()
    if sampling.top_p < 1:
        if not sampling.top_k and found_K.sum() < sampling.top_p * whole:
            found_K, ids_K = probabilities_V.sort(descending=True)
        # Up to and with the token that reaches the sum.
        kept = int((found_K.cumsum(dim=0) < sampling.top_p * whole).sum()) + 1
        found_K, ids_K = found_K[:kept], ids_K[:kept]
    if sampling.min_p:
        kept = max(1, int((found_K >= sampling.min_p * found_K[0]).sum()))
        found_K, ids_K = found_K[:kept], ids_K[:kept]
    return found_K, ids_K


def _mixed(seed: int, place: int) -> int:
    """Return a seed for one place of one answer (splitmix64: neighbouring inputs give unrelated ones)."""
    state = (seed + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


_MASK = 2**64 - 1


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one of several answers to a request; that of the first is the request's own."""
    return seed if choice == 0 else _mixed(seed ^ 0x5851F42D4C957F2D, choice)
