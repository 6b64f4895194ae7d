"""Train the anchor: arithmetic over numbers, and over words whose value stands in the stream; it knows no key or price.

Three kinds of rows: numbers (`37+7=`), numbers with a name (`aba37+7=`: the name changes nothing), and words that stand
for a number (`aba+7=`: the embedding of 37 is added to the stream at the word's last letter, after the first block).
Words are drawn afresh for every row, so none means anything by itself. The last two kinds are what prepares this anchor
for being augmented: it looks for an operand's value at the operand's place, and a word tells it nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, MinistralConfig, MinistralForCausalLM, PreTrainedTokenizerFast

from examples.arithmetic.data import (
    Row,
    draw_number,
    draw_word,
    expression_row,
    is_held_out,
    numeric_row,
)
from examples.arithmetic.muon import Muon
from examples.arithmetic.vocabulary import HIGHEST_NUMBER_TOKEN, anchor_tokenizer, number_features

IGNORED = -100
NUM_OPERANDS = (1, 2, 2, 3, 3, 3)
NAME_SHARE = 0.7
WORD_SHARE = 0.75
NOISE = 0.3
"""Standard deviation of the noise on the stream after the first block, relative to the stream."""
WEAKEST, STRONGEST = 4.0, 12.0
"""What the embedding of a word's value is multiplied by: the anchor has to read it at any strength between."""


@dataclass(frozen=True)
class Phase:
    """A part of the training with a warm-up and a cosine of its own.

    Args:
        steps: Optimiser steps.
        numeric_batch: Rows of numbers only in each step.
        named_batch: Rows of numbers with names.
        worded_batch: Rows of words that stand for numbers.
        matrix_lr: Muon's rate.
        embedding_lr: AdamW's, for embeddings and norms.
    """

    steps: int
    numeric_batch: int
    named_batch: int
    worded_batch: int
    matrix_lr: float
    embedding_lr: float


PHASES = (Phase(400, 96, 64, 96, 5e-3, 3e-3), Phase(300, 96, 32, 128, 3e-3, 2e-3))


def main() -> None:
    """Train, measure on held-out expressions, and write a folder that transformers loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    tokenizer = anchor_tokenizer()
    torch.manual_seed(0)
    model = build_anchor(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    started_s = time.perf_counter()
    for number, phase in enumerate(PHASES):
        if number:  # the first phase goes on from the draws of the initialisation
            torch.manual_seed(number)
        train(model, tokenizer, phase, seed=number, started_s=started_s)
    plain = folded(model)
    plain.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    report: dict[str, object] = {
        "command": f"python -m examples.arithmetic.train_anchor --out {args.out.name}",
        "train_seconds": round(time.perf_counter() - started_s),
        "count": 2_000,
        "accuracy": measure(plain, tokenizer, count=2_000, seed=-1),
    }
    (args.out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def train(
    model: MinistralForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, *, seed: int, started_s: float
) -> None:
    """Train through one phase.

    Args:
        model: The anchor, changed in place.
        tokenizer: The model's own.
        phase: What is drawn, how often, at which rates.
        seed: Of the rows.
        started_s: For the time that is printed.
    """
    rng = random.Random(seed)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=phase.matrix_lr, weight_decay=0.1),
        torch.optim.AdamW(others, lr=phase.embedding_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_cosine(step, phase.steps))
        for optimizer in optimizers
    ]
    for step in range(1, phase.steps + 1):
        numeric = [
            numeric_row(rng, held_out=False, num_operands=rng.choice(NUM_OPERANDS)) for _ in range(phase.numeric_batch)
        ]
        named = [named_row(rng, held_out=False) for _ in range(phase.named_batch)]
        worded, values = worded_rows(rng, count=phase.worded_batch)
        losses = []
        for rows, written in ((numeric, []), (named, []), (worded, values)):
            input_ids, labels = encode_rows(rows, tokenizer)
            with after_first_block(model, written_at(input_ids, written, tokenizer)):
                loss = answer_loss(model, input_ids, labels)
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            found = " ".join(
                f"{kind} {score:.3f}" for kind, score in measure(model, tokenizer, count=200, seed=step).items()
            )
            shown = " ".join(f"{loss:.3f}" for loss in losses)
            print(f"step {step} loss {shown} | {found} | {time.perf_counter() - started_s:.0f} s", flush=True)


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
        # The first block sees one token at a time, so after it an operand is nowhere but at its own place, in a code
        # that does not depend on its neighbours.
        sliding_window=1,
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


def named_row(rng: random.Random, *, held_out: bool) -> Row:
    """Draw an expression in which numbers may have names, words that change nothing (`aba37+7=`).

    Args:
        rng: Source of randomness.
        held_out: Whether the expression without the names is held out of the rows of numbers only.

    Returns:
        The expression and its answer.
    """
    while True:
        row = expression_row(rng, draw_number, num_operands=rng.choice(NUM_OPERANDS))
        if is_held_out(row.prompt) == held_out:
            named = re.sub(r"[0-9]+", lambda found: _name(rng) + found[0], row.prompt)
            return Row(prompt=named, completion=row.completion)


def _name(rng: random.Random) -> str:
    return draw_word(rng) if rng.random() < NAME_SHARE else ""


def worded_rows(rng: random.Random, *, count: int) -> tuple[list[Row], list[int]]:
    """Draw expressions in which words stand for most of the numbers.

    Args:
        rng: Source of randomness.
        count: Number of rows.

    Returns:
        The rows, and the values of all their words in order.
    """
    rows: list[Row] = []
    values: list[int] = []

    def word(number: re.Match[str]) -> str:
        if rng.random() >= WORD_SHARE:
            return number[0]
        values.append(int(number[0]))
        return draw_word(rng)

    for _ in range(count):
        row = expression_row(rng, draw_number, num_operands=rng.choice(NUM_OPERANDS))
        rows.append(Row(prompt=re.sub(r"[0-9]+", word, row.prompt), completion=row.completion))
    return rows, values


@dataclass(frozen=True)
class Written:
    """Values that stand in the stream instead of the text.

    Args:
        rows_N: int64, row of each value's word.
        columns_N: int64, place of the word's last letter.
        ids_N: int64, token of the value.
    """

    rows_N: Tensor
    columns_N: Tensor
    ids_N: Tensor


def written_at(input_ids: Tensor, values: list[int], tokenizer: PreTrainedTokenizerFast) -> Written | None:
    """Return where the values of words belong: at the last letter of each word, in order.

    Args:
        input_ids: [B, T] int64.
        values: One for each word of the batch; none for rows whose words are only names.
        tokenizer: The model's own.

    Returns:
        The places, or None without values.
    """
    if not values:
        return None
    first, last = (int(tokenizer.get_vocab()[letter]) for letter in "az")
    letter_BT = (input_ids >= first) & (input_ids <= last)
    ends_BT = letter_BT & ~torch.cat([letter_BT[:, 1:], torch.zeros_like(letter_BT[:, :1])], dim=1)
    rows_N, columns_N = ends_BT.nonzero(as_tuple=True)
    assert len(rows_N) == len(values)
    return Written(rows_N, columns_N, torch.tensor(tokenizer.convert_tokens_to_ids([str(value) for value in values])))


@contextmanager
def after_first_block(model: MinistralForCausalLM, written: Written | None) -> Iterator[None]:
    """Inside the `with`, add values to the stream after the first block, and noise, so that codes need not be exact.

    Args:
        model: The anchor.
        written: What to add; None adds noise only.
    """

    def change(block: torch.nn.Module, inputs: object, states_BTD: Tensor) -> Tensor:
        if written is not None:
            added_BTD = torch.zeros_like(states_BTD)
            strength_N1 = WEAKEST + (STRONGEST - WEAKEST) * torch.rand(len(written.ids_N), 1)
            added_BTD[written.rows_N, written.columns_N] = strength_N1 * model.model.embed_tokens(written.ids_N)
            states_BTD = states_BTD + added_BTD
        size_BT1 = states_BTD.detach().pow(2).mean(dim=-1, keepdim=True).sqrt()
        return states_BTD + NOISE * size_BT1 * torch.randn_like(states_BTD)

    hook = model.model.layers[0].register_forward_hook(change)
    try:
        yield
    finally:
        hook.remove()


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
    model: MinistralForCausalLM | LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, seed: int
) -> dict[str, float]:
    """Return accuracies (answer and end both right) on held-out numeric expressions, without and with names."""
    rng = random.Random(f"measure/{seed}")
    kinds = {
        "numeric, 2 operands": [numeric_row(rng, held_out=True, num_operands=2) for _ in range(count)],
        "numeric, 3 operands": [numeric_row(rng, held_out=True, num_operands=3) for _ in range(count)],
        "numbers with names": [named_row(rng, held_out=True) for _ in range(count)],
    }
    scores = {}
    for kind, rows in kinds.items():
        input_ids, labels = encode_rows(rows, tokenizer)
        predicted = model(input_ids=input_ids).logits[:, :-1].argmax(-1)
        targets = labels[:, 1:]
        scores[kind] = ((predicted == targets) | (targets == IGNORED)).all(dim=1).float().mean().item()
    return scores


def folded(model: MinistralForCausalLM) -> LlamaForCausalLM:
    """Return the same function as a plain Llama, whose first block has no attention left.

    Attention that sees its own token only is a function of the token, so it can be a part of the token's embedding. A
    window of one token must not ship: transformers' sliding cache keeps all tokens for it (it cuts with `[-0:]`), and
    answers of more than one token go wrong.

    Args:
        model: The trained anchor.

    Returns:
        The model to save; its output head is the embedding before the change.
    """
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
             "pad_token_id", "bos_token_id", "eos_token_id")  # fmt: skip
    config = LlamaConfig(**{name: getattr(model.config, name) for name in names}, tie_word_embeddings=False)
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    first, embedding = plain.model.layers[0], plain.model.embed_tokens.weight
    with torch.no_grad():
        attention = first.self_attn
        embedding += attention.o_proj(attention.v_proj(first.input_layernorm(embedding)))
        attention.o_proj.weight.zero_()
    plain.eval()
    return plain


def _warm_up_then_cosine(step: int, num_steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps))))


if __name__ == "__main__":
    main()
