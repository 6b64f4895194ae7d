"""A training step of calm-pytorch (two x-transformers, composed by it) on our shapes; runs in a venv of its own."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks import shapes
from benchmarks.child import answer


def main(num_rows: int, num_tokens: int) -> None:
    """Answer with one step at a time."""
    import torch
    from CALM_pytorch import CALM, AugmentParams  # type: ignore[import-not-found]
    from x_transformers import Decoder, TransformerWrapper  # type: ignore[import-not-found]

    torch.set_num_threads(1)

    def transformer(sizes: dict[str, int]) -> Any:
        layers = Decoder(
            dim=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            heads=shapes.NUM_HEADS,
            attn_dim_head=shapes.HEAD_DIM,
            rotary_pos_emb=True,
            use_rmsnorm=True,
            ff_glu=True,
            ff_no_bias=True,
            ff_mult=shapes.INTERMEDIATE_SIZE / sizes["hidden_size"],
        )
        return TransformerWrapper(
            num_tokens=shapes.VOCAB_SIZE,
            max_seq_len=shapes.CONTEXT_LENGTH,
            use_abs_pos_emb=False,
            tie_embedding=True,
            attn_layers=layers,
        )

    torch.manual_seed(0)
    # Its layers count from 1.
    connections = tuple((below + 1, above + 1) for below, above in shapes.ATTACHED)
    model = CALM(
        transformer(shapes.ANCHOR),
        AugmentParams(model=transformer(shapes.AUGMENTER), connections=connections),
        attn_kwargs={"linear_project_context": True, "pre_rmsnorm": True, "flash": True, "heads": shapes.NUM_HEADS},
    )
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    # It drops the last token itself.
    ids = torch.randint(3, shapes.VOCAB_SIZE, (num_rows, num_tokens + 1))

    def step(_: int) -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        model(ids, prompt=ids[:, :-1]).backward()
        optimizer.step()
        return {}

    answer(step)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
