"""The attachment: the one trainable block of a composition (paper section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

ROTARY_BASE = 10_000.0
MAX_SLOPE = 4.0


class Attachment(nn.Module):
    """Cross-attention from one frozen layer into another.

    context = project(norm(augmenter)); out = W_o softmax(q k^T / sqrt(H) + visibility) v. The caller adds `out` to the
    residual stream after the target's block. The paper names no norm; without one the scale of foreign states,
    which differs a hundredfold between families, sets the learning rate.

    Args:
        source_width: Width C of the states read.
        target_width: Width D of the stream written to.
        num_heads: N.
        head_dim: H; N * H is the width of queries, keys and values.
        norms: `none` reads the states of both models as they are.
        gate: `none`: W_o starts at zero. `tanh`: W_o starts like the others and one scalar tanh gate at zero.
            Either way a fresh attachment contributes exactly zero.
        positions: `rotary` turns queries and keys by the aligned text index, so that "the same place" need not be
            learnt by content. `distance` lowers scores by slope x distance of the aligned indices, with slopes 4 to 1/4
            over the heads (as ALiBi, arXiv 2108.12409, in both directions), so that it need not be learnt at all.
        writes: `relative` multiplies the output by the root mean square of the target's states, position by position.
        first_token: `spare` adds nothing where the target's index is 0.
    """

    slopes_N: torch.Tensor | None

    def __init__(
        self,
        *,
        source_width: int,
        target_width: int,
        num_heads: int,
        head_dim: int,
        norms: Literal["rms", "none"] = "rms",
        gate: Literal["none", "tanh"] = "none",
        positions: Literal["none", "rotary", "distance"] = "none",
        writes: Literal["absolute", "relative"] = "absolute",
        first_token: Literal["write", "spare"] = "write",
    ) -> None:
        super().__init__()
        self.source_width, self.target_width = source_width, target_width
        self.num_heads, self.head_dim = num_heads, head_dim
        self.positions, self.writes, self.first_token = positions, writes, first_token
        inner = num_heads * head_dim
        self.source_norm = nn.RMSNorm(source_width, eps=1e-6) if norms == "rms" else nn.Identity()
        self.project = nn.Linear(source_width, target_width, bias=False)
        self.target_norm = nn.RMSNorm(target_width, eps=1e-6) if norms == "rms" else nn.Identity()
        self.query = nn.Linear(target_width, inner, bias=False)
        self.key = nn.Linear(target_width, inner, bias=False)
        self.value = nn.Linear(target_width, inner, bias=False)
        self.output = nn.Linear(inner, target_width, bias=False)
        slopes_N = MAX_SLOPE * 2.0 ** (-4 * torch.arange(num_heads) / num_heads)
        self.register_buffer("slopes_N", slopes_N if positions == "distance" else None, persistent=False)
        self.gate = nn.Parameter(torch.zeros(1)) if gate == "tanh" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: variance-preserving projections and an output that starts at exactly zero."""
        for linear in (self.project, self.query, self.key, self.value, self.output):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        if self.gate is None:
            nn.init.zeros_(self.output.weight)
        else:
            nn.init.zeros_(self.gate)

    def context(self, source_BSC: torch.Tensor, index_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of augmenter states, which a cache may keep for the rest of a request.

        Args:
            source_BSC: float, states of the source layer; they may come from another device.
            index_BS: int64, aligned text index (used by `rotary` only).

        Returns:
            keys and values, float [B, N, S, H].
        """
        context_BSD = self.project(self.source_norm(source_BSC.to(self.project.weight)))
        keys, values = self._heads(self.key(context_BSD)), self._heads(self.value(context_BSD))
        return self._rotated(keys, index_BS), values

    def forward(
        self,
        target_BTD: torch.Tensor,
        *,
        keys: torch.Tensor,
        values: torch.Tensor,
        visible_BTS: torch.Tensor,
        index_BT: torch.Tensor,
        source_index_BS: torch.Tensor,
    ) -> torch.Tensor:
        """What this attachment adds to the residual stream.

        Args:
            target_BTD: float, output of the target's block.
            keys: float [B, N, S, H] from `context`.
            values: float [B, N, S, H] from `context`.
            visible_BTS: bool, True where target position t may see source position s.
            index_BT: int64, text index of the target positions.
            source_index_BS: int64, text index of the source positions (used by `distance` only).

        Returns:
            float [B, T, D] in the target's dtype; exactly zero where nothing is visible or the first token is spared.
        """
        queries = self._heads(self.query(self.target_norm(target_BTD.to(self.query.weight.dtype))))
        queries = self._rotated(queries, index_BT)
        if self.first_token == "spare":
            visible_BTS = visible_BTS & (index_BT > 0)[:, :, None]
        sees_BT1 = visible_BTS.any(dim=-1, keepdim=True)
        # A row of softmax needs something to look at; what a blind row looked at is zeroed right after.
        mask = (visible_BTS | ~sees_BT1)[:, None]
        if self.slopes_N is not None:
            distance_BTS = (index_BT[:, :, None] - source_index_BS[:, None, :]).abs()
            scores = -self.slopes_N[:, None, None] * distance_BTS[:, None].to(queries.dtype)
            mask = scores.masked_fill(~mask, float("-inf")).to(queries.dtype)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed_BTI = mixed.transpose(1, 2).flatten(2) * sees_BT1
        out_BTD = self.output(mixed_BTI)
        if self.gate is not None:
            out_BTD = torch.tanh(self.gate) * out_BTD
        if self.writes == "relative":
            square_BT1 = target_BTD.to(out_BTD.dtype).pow(2).mean(dim=-1, keepdim=True)
            out_BTD = out_BTD * (square_BT1 + 1e-12).sqrt()  # the root of zero has no slope
        added_BTD: torch.Tensor = out_BTD.to(target_BTD.dtype)
        return added_BTD

    def extra_repr(self) -> str:
        """Widths and heads, for `print(model)`."""
        return f"{self.source_width} -> {self.target_width}, heads={self.num_heads}x{self.head_dim}"

    def _heads(self, x_BSI: torch.Tensor) -> torch.Tensor:
        num_rows, num_tokens, _ = x_BSI.shape
        return x_BSI.view(num_rows, num_tokens, self.num_heads, self.head_dim).transpose(1, 2)

    def _rotated(self, x_BNSH: torch.Tensor, index_BS: torch.Tensor) -> torch.Tensor:
        if self.positions != "rotary":
            return x_BNSH
        half = self.head_dim // 2
        frequency_F = ROTARY_BASE ** (-torch.arange(half, device=x_BNSH.device, dtype=torch.float32) / half)
        angle = index_BS[:, None, :, None].to(frequency_F) * frequency_F
        cos, sin = angle.cos().to(x_BNSH.dtype), angle.sin().to(x_BNSH.dtype)
        left, right = x_BNSH[..., :half], x_BNSH[..., half : 2 * half]
        return torch.cat([left * cos - right * sin, right * cos + left * sin, x_BNSH[..., 2 * half :]], dim=-1)
