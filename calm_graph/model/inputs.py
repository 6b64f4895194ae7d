"""What a call of a composed model may be given; everything else is one clear error before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calm_graph.errors import InputError
from calm_graph.model.tokens import AnchorTokens


def check_ids(ids_BT: torch.Tensor, vocab_size: int) -> None:
    """Refuse token ids that the anchor has no embedding for.

    Raises:
        InputError: Naming the place, the id and the range.
    """
    wrong_BT = (ids_BT < 0) | (ids_BT >= vocab_size)
    if bool(wrong_BT.any()):
        row, column = (int(x) for x in wrong_BT.nonzero()[0])
        raise InputError(
            f"input_ids[{row}, {column}]: got {int(ids_BT[row, column])}, but the anchor's vocabulary has ids "
            f"0..{vocab_size - 1}; tokenise with the anchor's own tokenizer"
        )


def check_prompt(tokens: AnchorTokens, prompt_lengths: torch.Tensor, prompt_texts: Sequence[str | None] | None) -> None:
    """Refuse empty rows, and prompts that are not whole.

    Raises:
        InputError: Naming the row, what came and what is allowed.
    """
    num_real_B = tokens.real_BT.sum(dim=1)
    if prompt_lengths.shape != num_real_B.shape:
        raise InputError(f"prompt_lengths: got shape {tuple(prompt_lengths.shape)}, expected ({len(num_real_B)},)")
    for row, (length, num_real) in enumerate(zip(prompt_lengths.tolist(), num_real_B.tolist(), strict=True)):
        if num_real == 0:
            raise InputError(f"input_ids[{row}]: the row has no token; give at least the beginning-of-text token")
        if not 0 <= length <= num_real:
            raise InputError(
                f"prompt_lengths[{row}]: got {length}, but the row has {num_real} tokens; "
                "the first call must hold the whole prompt"
            )
    if prompt_texts is not None and len(prompt_texts) != len(prompt_lengths):
        raise InputError(f"prompt_texts: got {len(prompt_texts)} texts for {len(prompt_lengths)} rows")
