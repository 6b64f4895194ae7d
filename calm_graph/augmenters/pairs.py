"""Masks of pairs of tokens, for texts in which some tokens were withdrawn while others stood after them.

A token sees those before it that were not withdrawn yet when it became known. So a text and all the ways in which its
words were once read are one sequence, a tree of tokens, and one pass over it gives what decoding gives step by step.
"""

from __future__ import annotations

from typing import Any

import torch

NEVER = 2**62


def seen_pairs(
    real_BL: torch.Tensor, known_at_BL: torch.Tensor, withdrawn_at_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Work out which tokens see which.

    Args:
        real_BL: bool.
        known_at_BL: int64, from when on each is known.
        withdrawn_at_BL: int64, from when on it is not seen any more.

    Returns:
        bool [B, L, L], whether token i sees token j; and int64 [B, L], each token's position among those it sees.
    """
    before_LL = torch.ones(real_BL.shape[1], real_BL.shape[1], dtype=torch.bool, device=real_BL.device).tril()
    stands_BLL = withdrawn_at_BL[:, None, :] > known_at_BL[:, :, None]
    sees_BLL = before_LL & real_BL[:, None, :] & stands_BLL
    return sees_BLL, (sees_BLL.sum(dim=2) - 1).clamp(min=0)


def withdrawn(real_BS: torch.Tensor, withdrawn_at_BS: torch.Tensor, at_BR: torch.Tensor) -> torch.Tensor:
    """Withdraw the newest tokens of each row.

    Args:
        real_BS: bool.
        withdrawn_at_BS: int64, NEVER where a token stands.
        at_BR: int64, when: of the newest token that stands first; NEVER where none is meant.

    Returns:
        `withdrawn_at_BS`, changed.
    """
    if at_BR.shape[1] == 0:
        return withdrawn_at_BS
    at_BR = at_BR.to(withdrawn_at_BS.device)
    is_left_BS = real_BS & (withdrawn_at_BS == NEVER)
    age_BS = is_left_BS.flip(1).cumsum(dim=1).flip(1) - 1
    last = at_BR.shape[1] - 1
    return torch.where(is_left_BS & (age_BS <= last), at_BR.gather(1, age_BS.clamp(0, last)), withdrawn_at_BS)


def earlier_withdrawn(withdrawn_at_BS: torch.Tensor, last_B1: torch.Tensor) -> torch.Tensor:
    """What was withdrawn after anchor index `last_B1`, int64 [B, 1], and stays so, is withdrawn right after it."""
    return torch.where(withdrawn_at_BS == NEVER, NEVER, torch.minimum(withdrawn_at_BS, last_B1 + 1))


def pairwise_mask(
    config: Any, sees_BLL: torch.Tensor, positions_BL: torch.Tensor, *, num_new: int, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask that a transformers model takes for its newest tokens.

    Args:
        config: The model's, which says what its windows are.
        sees_BLL: bool.
        positions_BL: int64.
        num_new: S, the newest of the L tokens.
        dtype: Of the model.

    Returns:
        float [B, 1, S, L], 0 where a token is seen; by kind of layer if some have windows and others have not.
    """
    sees_BSL = sees_BLL[:, -num_new:]
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return _added(sees_BSL, dtype)
    near_BSL = positions_BL[:, -num_new:, None] - positions_BL[:, None, :] < window
    windowed = _added(sees_BSL & near_BSL, dtype)
    if kinds is None:
        return windowed
    return {"full_attention": _added(sees_BSL, dtype), "sliding_attention": windowed}


def _added(sees_BSL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Not -inf: padding sees nothing, and its softmax must not be NaN.
    mask = torch.zeros(sees_BSL.shape, dtype=dtype, device=sees_BSL.device)
    return mask.masked_fill(~sees_BSL, torch.finfo(dtype).min)[:, None]
