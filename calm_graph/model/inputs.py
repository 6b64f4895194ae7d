"""What a call of a composed model may be given; everything else is one clear error before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calm_graph.errors import InputError
from calm_graph.model.tokens import AnchorTokens
from calm_graph.plan.parts import PlannedRun


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


def check_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    past: int,
    vocab_size: int,
    anchor: PlannedRun,
) -> AnchorTokens:
    """Check new anchor tokens and count the real ones.

    Args:
        input_ids: int64 [B, T].
        attention_mask: bool or int [B, past + T], or None.
        past: Columns before these.
        vocab_size: Of the anchor.
        anchor: How it is called, and how much it can read.

    Returns:
        The tokens with their index among each row's real ones.

    Raises:
        InputError: Empty, ids out of range, a mask of another shape, or longer than the anchor's context.
    """
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise InputError(f"input_ids: got shape {tuple(input_ids.shape)}; expected [batch, tokens], tokens >= 1")
    num_rows, num_new = input_ids.shape
    if past == 0:
        # Not at every step: looking at the ids makes a GPU wait, and generated ones are the anchor's own.
        check_ids(input_ids, vocab_size)
    if attention_mask is None:
        index_BT = torch.arange(past, past + num_new, device=input_ids.device).expand(num_rows, -1)
        real_BT = torch.ones_like(input_ids, dtype=torch.bool)
    elif attention_mask.shape == (num_rows, past + num_new):
        real_BT = attention_mask.bool()
        index_BT = (real_BT.cumsum(dim=1) - 1).clamp(min=0)[:, past:]
        real_BT = real_BT[:, past:]
    else:
        raise InputError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, expected ({num_rows}, {past + num_new}): "
            "one column for each token so far"
        )
    limit = anchor.card.context_length
    if limit is not None and past + num_new > limit and (longest := int(index_BT.max()) + 1) > limit:
        raise InputError(
            f"input_ids: got {longest} tokens, but anchor {anchor.name!r} has a context of {limit}; "
            "shorten the prompt or generate fewer tokens"
        )
    return AnchorTokens(ids_BT=input_ids, real_BT=real_BT, index_BT=index_BT)


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
