"""Log-probabilities of tokens, with the tokens' text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calm_graph.generate.requests import TokenLogprob
from calm_graph.model.token_bytes import TokenBytes


class Logprobs:
    """Reads them off logits.

    Args:
        table: Bytes of the anchor's tokens.
        tokenizer: The anchor's, for tokens that stand for no text.
    """

    def __init__(self, table: TokenBytes, tokenizer: Any) -> None:
        self._bytes, self._tokenizer = table, tokenizer

    def of(self, logits_TV: torch.Tensor, ids: Sequence[int], count: int) -> list[tuple[TokenLogprob, ...]]:
        """Return, for each position, the token itself and then the likeliest ones.

        Args:
            logits_TV: float.
            ids: The tokens, T of them.
            count: How many of the likeliest.
        """
        logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
        top = logprobs_TV.topk(count, dim=-1) if count else None
        found = []
        for row, id in enumerate(ids):
            pairs = [(id, float(logprobs_TV[row, id]))]
            if top is not None:
                pairs += zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            found.append(
                tuple(TokenLogprob(token_id=each, text=self._text(each), logprob=value) for each, value in pairs)
            )
        return found

    def _text(self, id: int) -> str:
        text = self._bytes([id])[0].decode(errors="replace")
        return text or str(self._tokenizer.convert_ids_to_tokens(id) or "")
