"""Told states: what the anchor would hold, had the prompt said what the augmenters know (context distillation)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

SIZE_SHARE = 0.1
"""How much the states' sizes count beside their directions."""


def differences(found_KD: torch.Tensor, wanted_KD: torch.Tensor) -> torch.Tensor:
    """Return how far each state is from the one it should be.

    States are compared as the next block reads them, that is normalised: what the anchor made of the untold prompt
    cannot be taken away by attachments, which read it in their queries only, but it can be made small beside what they
    write. Sizes count too, a tenth as much: beside large states what later blocks add would be lost.

    Args:
        found_KD: float, K states.
        wanted_KD: float, the same ones told.

    Returns:
        float32 [K]: the mean squared difference of the normalised states, plus a tenth of the squared logarithm of
        their sizes' ratio; 0 where they are the same.
    """
    found_KD, wanted_KD = found_KD.float(), wanted_KD.float()
    width = (wanted_KD.shape[-1],)
    direction_K = (F.rms_norm(found_KD, width) - F.rms_norm(wanted_KD, width)).pow(2).mean(dim=-1)
    ratio_K = found_KD.pow(2).mean(dim=-1) / wanted_KD.pow(2).mean(dim=-1)
    return direction_K + SIZE_SHARE * (ratio_K.log() / 2).pow(2)
