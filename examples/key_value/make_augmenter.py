"""Train the key-value model: a small transformer whose state at the last token of a key tells its value's digits."""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from examples.key_value.world import ANCHOR, table
from registry import registry
from registry.weights import load_tokenizer

WIDTH, NUM_LAYERS, NUM_HEADS = 128, 2, 4
BATCH_SIZE = 256


def main() -> None:
    """Train it on every key, check it, and save it as a folder that the registry can name."""
    parser = argparse.ArgumentParser(prog="python -m examples.key_value.make_augmenter", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/key_value/prices"))
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(registry.get(ANCHOR))
    model, found = train(tokenizer, steps=args.steps)
    print(f"keys whose value the state at their last token tells: {100 * found:.1f}%")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    card = {"name": "private-prices", "source": "folder:.", "tags": ["key_value"]}
    (args.out / "card.json").write_text(json.dumps(card) + "\n", encoding="utf-8")
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def train(tokenizer: Any, *, steps: int) -> tuple[Qwen2ForCausalLM, float]:
    """Train on expressions of keys: at each key's last token two heads, dropped afterwards, must tell the digits.

    Args:
        tokenizer: The anchor's.
        steps: Of 256 expressions.

    Returns:
        The model, and the share of keys that it knows in expressions it has not seen.
    """
    rng = random.Random(0)
    words = {(key, first): _ids(tokenizer, key if first else f" {key}") for key in table() for first in (True, False)}
    marks = {mark: _ids(tokenizer, mark) for mark in (" +", " -", " =", "\n", " ")}
    used = sorted({id for ids in [*words.values(), *marks.values()] for id in ids} | set(_ids(tokenizer, "0123456789")))
    local = {id: index for index, id in enumerate(used)}
    # Trained on the tokens that occur, a three-hundredth of the vocabulary; the others get the mean embedding below.
    model = Qwen2ForCausalLM(_config(len(used)))
    head = torch.nn.Linear(WIDTH, 20)  # tens, then ones
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.05)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, values = [], []
        names = list(table())
        for _ in range(count):
            ids, value = list(marks["\n"]), [-100] * len(marks["\n"])
            for place in range(3):
                key = names[rng.randrange(len(names))]
                if place:
                    ids += marks[rng.choice((" +", " -"))]
                    value += [-100] * (len(ids) - len(value))
                ids += words[key, place == 0]
                value += [-100] * (len(ids) - len(value) - 1) + [table()[key]]
            rows.append([local[id] for id in ids])
            values.append(value)
        width = max(map(len, rows))
        inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows])
        targets = torch.tensor([value + [-100] * (width - len(value)) for value in values])
        return inputs, targets

    started_s = time.perf_counter()
    for step in range(steps):
        inputs, targets = batch(BATCH_SIZE)
        states = model.model(input_ids=inputs).last_hidden_state
        # Noise as large as the state asks for digits that stand far apart, and so for states that are little else.
        guesses = head(states + torch.randn_like(states))[targets >= 0]
        wanted = targets[targets >= 0]
        loss = F.cross_entropy(guesses[:, :10], wanted // 10) + F.cross_entropy(guesses[:, 10:], wanted % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.4f}  {time.perf_counter() - started_s:.0f} s", flush=True
            )
    with torch.no_grad():
        inputs, targets = batch(1000)
        guesses = head(model.model(input_ids=inputs).last_hidden_state)[targets >= 0]
        numbers = 10 * guesses[:, :10].argmax(dim=-1) + guesses[:, 10:].argmax(dim=-1)
        found = (numbers == targets[targets >= 0]).float().mean().item()
    return _with_whole_vocabulary(model, used, len(tokenizer)), found


def _config(vocab_size: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def _with_whole_vocabulary(model: Qwen2ForCausalLM, used: list[int], size: int) -> Qwen2ForCausalLM:
    whole = Qwen2ForCausalLM(_config(size))
    trained = model.state_dict()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if parameter.shape == trained[name].shape:
                parameter.copy_(trained[name])
            else:
                parameter.copy_(trained[name].mean(dim=0).expand_as(parameter))
                parameter[used] = trained[name]
    whole.eval()
    return whole


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


if __name__ == "__main__":
    main()
