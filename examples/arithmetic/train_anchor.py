"""Train the anchor: arithmetic over numbers in figures and in (invented) words; it knows no key and no price."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MinistralConfig, MinistralForCausalLM, PreTrainedTokenizerFast

from examples.arithmetic.data import (
    HIGHEST_PRICE,
    Row,
    draw_number,
    draw_unknown_word,
    expression_row,
    number_words,
    numeric_row,
)
from examples.arithmetic.muon import Muon
from examples.arithmetic.vocabulary import HIGHEST_NUMBER_TOKEN, anchor_tokenizer, number_features

IGNORED = -100
# What these rows teach is a guess: at full weight their noise slows everything else down.
UNKNOWN_WEIGHT = 0.1
NUM_OPERANDS = (1, 2, 2, 3, 3, 3)


def main() -> None:
    """Train, measure on held-out expressions, and write a folder that transformers loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--numeric-batch", type=int, default=128)
    parser.add_argument("--worded-batch", type=int, default=128)
    parser.add_argument("--unknown-batch", type=int, default=48)
    parser.add_argument("--matrix-lr", type=float, default=5e-3)
    parser.add_argument("--embedding-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = anchor_tokenizer()
    model = build_anchor(tokenizer)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=args.matrix_lr, weight_decay=0.1),
        torch.optim.AdamW(others, lr=args.embedding_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, args.steps))
        for optimizer in optimizers
    ]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {args.steps} steps", flush=True)
    started_s = time.perf_counter()
    for step in range(1, args.steps + 1):
        numeric = [
            numeric_row(rng, held_out=False, num_operands=rng.choice(NUM_OPERANDS)) for _ in range(args.numeric_batch)
        ]
        worded = [worded_row(rng, unknown_share=0.0) for _ in range(args.worded_batch)]
        unknown = [worded_row(rng, unknown_share=0.6) for _ in range(args.unknown_batch)]
        losses = []
        for rows, weight in ((numeric, 1.0), (worded, 1.0), (unknown, UNKNOWN_WEIGHT)):
            loss = answer_loss(model, *encode_rows(rows, tokenizer))
            (weight * loss).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == args.steps:
            held_out = {k: v for k, v in measure(model, tokenizer, count=200, seed=step).items() if k != "counts"}
            elapsed_s = time.perf_counter() - started_s
            found = " ".join(f"{name} {score:.3f}" for name, score in held_out.items())
            print(
                f"step {step} loss numeric {losses[0]:.3f} worded {losses[1]:.3f} | {found} | {elapsed_s:.0f} s",
                flush=True,
            )
        if step % 500 == 0 or step == args.steps:
            save(model, tokenizer, args.out)
    scores = measure(model, tokenizer, count=2_000, seed=-1)
    report: dict[str, object] = {
        "command": f"python -m examples.arithmetic.train_anchor --out {args.out.name} --steps {args.steps}",
        "train_seconds": round(time.perf_counter() - started_s),
        "count": 2_000,
        "accuracy": scores,
    }
    (args.out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def build_anchor(tokenizer: PreTrainedTokenizerFast) -> MinistralForCausalLM:
    """Build an untrained anchor of about a million parameters whose number embeddings start as number features."""
    config = MinistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=128,
        # The first block reaches back over a word only, so an operand is read before its sign: what is added to the
        # stream after this block is used like an operand of the anchor's own.
        sliding_window=3,
        layer_types=["sliding_attention", *["full_attention"] * 4],
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = MinistralForCausalLM(config)
    numbers = torch.arange(HIGHEST_NUMBER_TOKEN + 1)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(number) for number in numbers.tolist()]))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.normal_(std=0.1)
        embedding[ids] = 0.1 * number_features(numbers, config.hidden_size)
    return model


def worded_row(rng: random.Random, *, unknown_share: float) -> Row:
    """Draw an expression with operands in figures, in number words, and in words that mean nothing.

    A word that means nothing stands for a fresh price each time: the anchor learns to weigh every answer that the
    known operands leave open, instead of being sure of a wrong one.

    Args:
        rng: Source of randomness.
        unknown_share: Share of operands that are unknown words.

    Returns:
        The expression and its answer.
    """
    words = list(number_words().items())

    def draw(rng: random.Random) -> tuple[str, int]:
        if rng.random() < unknown_share:
            return draw_unknown_word(rng), rng.randint(1, HIGHEST_PRICE)
        return draw_number(rng) if rng.random() < 0.2 else words[rng.randrange(len(words))]

    return expression_row(rng, draw, num_operands=rng.choice(NUM_OPERANDS))


def encode_rows(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Encode rows, padded on the right, with labels on the answer and on the end.

    Args:
        rows: B rows.
        tokenizer: The model's own.

    Returns:
        input_ids and labels, both [B, T] int64; labels are -100 on the prompt and the padding.
    """
    prompts = tokenizer([row.prompt for row in rows]).input_ids
    answers = tokenizer([row.completion for row in rows], add_special_tokens=False).input_ids
    length = max(len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True))
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        input_ids[i, : len(ids)] = ids
        labels[i, len(prompt) : len(ids)] = ids[len(prompt) :]
    return input_ids, labels


def answer_loss(model: MinistralForCausalLM, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the labelled tokens; padding on the right needs no mask in a causal model.

    Args:
        model: The anchor.
        input_ids: [B, T] int64.
        labels: [B, T] int64, -100 where unsupervised.

    Returns:
        Scalar.
    """
    states_BTD = model.model(input_ids=input_ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    supervised = targets != IGNORED
    return F.cross_entropy(model.lm_head(states_BTD[supervised]), targets[supervised])


@torch.no_grad()
def measure(
    model: MinistralForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, seed: int
) -> dict[str, float]:
    """Return accuracies (answer and end both right) on held-out numeric expressions and on expressions with words."""
    rng = random.Random(f"measure/{seed}")
    kinds = {
        "numeric, 2 operands": [numeric_row(rng, held_out=True, num_operands=2) for _ in range(count)],
        "numeric, 3 operands": [numeric_row(rng, held_out=True, num_operands=3) for _ in range(count)],
        "number words": [worded_row(rng, unknown_share=0.0) for _ in range(count)],
    }
    scores = {}
    for kind, rows in kinds.items():
        input_ids, labels = encode_rows(rows, tokenizer)
        predicted = model(input_ids=input_ids).logits[:, :-1].argmax(-1)
        targets = labels[:, 1:]
        scores[kind] = ((predicted == targets) | (targets == IGNORED)).all(dim=1).float().mean().item()
    return scores


def save(model: MinistralForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer files."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _warm_up_then_cosine(step: int, num_steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))


if __name__ == "__main__":
    main()
