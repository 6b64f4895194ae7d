"""Train the two augmenters: each knows one department's prices, at the place where a key stands, and no arithmetic."""

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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.arithmetic.data import (
    DEPARTMENT_NAMES,
    HIGHEST_ANSWER,
    HIGHEST_PRICE,
    Department,
    Row,
    accuracy,
    departments,
    test_rows,
)
from examples.arithmetic.vocabulary import NONE, number_features, price_tokenizer

IGNORED = -100


def main() -> None:
    """Train each department's augmenter, measure it, and write folders that transformers loads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="parent of demo-prices-garden and demo-prices-kitchen")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in DEPARTMENT_NAMES:
        train(departments()[name], args.out / f"demo-prices-{name}", args)


def train(department: Department, out: Path, args: argparse.Namespace) -> None:
    """Train and save the augmenter of one department."""
    torch.manual_seed(args.seed)
    rng = random.Random(f"{department.name}/{args.seed}")
    tokenizer = price_tokenizer(department.prices)
    model = build_augmenter(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1.02 + math.cos(math.pi * min(1.0, step / args.steps))),
    )
    print(
        f"{department.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {args.steps} steps", flush=True
    )
    started_s = time.perf_counter()
    for step in range(1, args.steps + 1):
        input_ids, labels = price_batch(rng, department, tokenizer, count=args.batch)
        states_BTD = model.model(input_ids=input_ids).last_hidden_state
        supervised = labels != IGNORED
        loss = F.cross_entropy(model.lm_head(states_BTD[supervised]), labels[supervised])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0 or step == args.steps:
            print(f"step {step} loss {loss.item():.4f} | {time.perf_counter() - started_s:.0f} s", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    report = {
        "command": f"python -m examples.arithmetic.train_prices --out {args.out.name} --steps {args.steps}",
        "train_seconds": round(time.perf_counter() - started_s),
        "accuracy": measure(model, tokenizer, department),
    }
    (out / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def build_augmenter(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build an untrained augmenter of two blocks whose price embeddings start as number features."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    numbers = torch.arange(HIGHEST_PRICE + 1)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids([str(number) for number in numbers.tolist()]))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.normal_(std=0.02)
        embedding[ids] = 0.1 * number_features(numbers, config.hidden_size)
    return model


def price_batch(
    rng: random.Random, department: Department, tokenizer: PreTrainedTokenizerFast, *, count: int
) -> tuple[Tensor, Tensor]:
    """Draw texts in which keys occur, with what is to be predicted at each of their tokens.

    A key predicts its price wherever it stands; every other token predicts that there is none. So the price is in the
    state at the key itself, where an attachment can read it, in one code for all keys.

    Args:
        rng: Source of randomness.
        department: Whose keys.
        tokenizer: The augmenter's own.
        count: Number of texts, B.

    Returns:
        input_ids and labels, both [B, T] int64; labels are -100 on the padding.
    """
    own = list(department.prices)
    none, equals, end, *marks = (int(tokenizer.get_vocab()[token]) for token in (NONE, "=", "<eos>", "+", "-"))
    price_id = {key: int(tokenizer.get_vocab()[str(price)]) for key, price in department.prices.items()}
    ids_of_key = {key: tokenizer.convert_tokens_to_ids(key) for key in own}
    rows: list[list[int]] = []
    targets: list[list[int]] = []
    for _ in range(count):
        ids, wanted = [tokenizer.bos_token_id], [none]
        num_operands = rng.randint(1, 4)
        answer = none
        for i in range(num_operands):
            if i:
                ids.append(rng.choice(marks))
                wanted.append(none)
            kind = rng.random()
            if kind < 0.7:
                key = own[rng.randrange(len(own))]
                ids.append(ids_of_key[key])
                answer = price_id[key]
            elif kind < 0.9:
                ids.append(tokenizer.unk_token_id)
                answer = none
            else:
                ids.append(tokenizer.convert_tokens_to_ids(str(rng.randint(0, HIGHEST_PRICE))))
                answer = none
            wanted.append(answer)
        answer = answer if num_operands == 1 else none
        ids += [equals, answer]
        wanted += [answer, end]
        rows.append(ids)
        targets.append(wanted)
    length = max(map(len, rows))
    input_ids = torch.full((count, length), tokenizer.pad_token_id)
    labels = torch.full((count, length), IGNORED)
    for i, (ids, wanted) in enumerate(zip(rows, targets, strict=True)):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(ids)] = torch.tensor(wanted)
    return input_ids, labels


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, department: Department) -> dict[str, float]:
    """Return how often the augmenter, alone, answers with a key's price, sees it at the key, and adds prices."""
    rows = [Row(prompt=f"{key}=", completion=str(price)) for key, price in department.prices.items()]
    logits = model(**tokenizer([row.prompt for row in rows], return_tensors="pt")).logits
    words = [tokenizer.convert_ids_to_tokens(logits[:, position].argmax(-1).tolist()) for position in (1, 2)]
    sums = test_rows("key_value", [department.name], split="unseen", count=1_000)
    answers = []
    for row in sums:
        batch = tokenizer(row.prompt, return_tensors="pt")
        answers.append(str(tokenizer.convert_ids_to_tokens(int(model(**batch).logits[0, -1].argmax()))))
    return {
        f"substitution, all {len(rows)} keys": accuracy(words[1], rows),
        "price read at the key itself": accuracy(words[0], rows),
        f"key-value arithmetic, answers 0..{HIGHEST_ANSWER}": accuracy(answers, sums),
    }


if __name__ == "__main__":
    main()
