"""What training makes small: the surprise of labels, and on kept rows the distance from the anchor alone."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from calm_graph.errors import InputError


def supervised_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns, int64 [K] each, of the positions whose next token is a label.

    Args:
        labels: int64 [B, T], -100 where unsupervised.

    Raises:
        InputError: There are none.
    """
    rows_K, columns_K = (labels[:, 1:] != -100).nonzero(as_tuple=True)
    if len(rows_K) == 0:
        raise InputError("labels: every label is -100, so there is nothing to learn from this batch")
    return rows_K, columns_K


def next_token(logits_KV: torch.Tensor, targets_K: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy in nats, summed; 0 for no positions.

    Args:
        logits_KV: float, of K positions.
        targets_K: int64, the tokens that came next.
    """
    return F.cross_entropy(logits_KV.float(), targets_K, reduction="sum")


def divergence(logits_KV: torch.Tensor, teacher_KV: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence from a teacher's distributions in nats, summed.

    Unlike a label it says at each position what all tokens should be worth, so little text is enough (knowledge
    distillation: Hinton et al. 2015, arXiv 1503.02531; against forgetting: Li and Hoiem 2016, arXiv 1606.09282).

    Args:
        logits_KV: float, of K positions.
        teacher_KV: float, the teacher's.
    """
    wanted_KV = F.log_softmax(teacher_KV.float(), dim=-1)
    return F.kl_div(F.log_softmax(logits_KV.float(), dim=-1), wanted_KV, reduction="sum", log_target=True)
