"""Train the key-value model: its states tell a value's digits at a key's last token, and elsewhere that there are none.

"None" matters as much as the digits: halfway through a key its first token alone would be a guess at the value, which
attachments could learn by heart for the few keys they are trained on; and at numbers there is nothing to write.
"""

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

from examples.key_value.world import ANCHOR, EXAMPLE, HIGHEST_NUMBER, table
from registry import registry
from registry.weights import load_tokenizer

WIDTH, NUM_LAYERS, NUM_HEADS = 128, 2, 4
BATCH_SIZE = 256
NUMBER_SHARE = 0.2
NONE = 10
"""What both heads say where no key ends, beside the ten digits."""
NOISE = 2.0
"""Added to the states that tell digits, in standard deviations of a state's elements, give or take."""


def main() -> None:
    """Train it on every key, check it, and save it as a folder that the registry can name."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.key_value.make_augmenter", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/key_value/prices"))
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = load_tokenizer(registry.get(ANCHOR))
    model, found = train(tokenizer, steps=args.steps)
    print(f"keys whose value the state at their last token tells: {100 * found:.1f}%")
    save(model, tokenizer, args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def train(tokenizer: Any, *, steps: int) -> tuple[Qwen2ForCausalLM, float]:
    """Train on expressions of keys and numbers; two heads, dropped afterwards, must tell the digits or that none are.

    Args:
        tokenizer: The anchor's.
        steps: Of 256 expressions.

    Returns:
        The model, and the share of keys that it knows in expressions it has not seen.
    """
    rng = random.Random(0)
    words = {(key, first): _ids(tokenizer, key if first else f" {key}") for key in table() for first in (True, False)}
    marks = {mark: _ids(tokenizer, mark) for mark in (" +", " -", " =", "\n", " ", EXAMPLE)}
    numbers = {
        (n, first): _ids(tokenizer, str(n) if first else f" {n}")
        for n in range(1, HIGHEST_NUMBER + 1)
        for first in (True, False)
    }
    used = sorted({id for ids in [*words.values(), *marks.values(), *numbers.values()] for id in ids})
    local = {id: index for index, id in enumerate(used)}
    # Trained on the tokens that occur, a three-hundredth of the vocabulary; the others get the mean embedding below.
    model = Qwen2ForCausalLM(config(len(used)))
    head = torch.nn.Linear(WIDTH, 2 * (NONE + 1))  # tens, then ones
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.05)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, digits = [], []
        names = list(table())
        for _ in range(count):
            # A key is read by what it is, after whatever was said before it.
            ids = list(marks[rng.choice(("\n", EXAMPLE))])
            value: list[int | None] = [None] * len(ids)
            for place in range(3):
                if place:
                    ids += marks[rng.choice((" +", " -"))]
                if is_number := rng.random() < NUMBER_SHARE:
                    ids += numbers[rng.randint(1, HIGHEST_NUMBER), place == 0]
                else:
                    key = names[rng.randrange(len(names))]
                    ids += words[key, place == 0]
                value += [None] * (len(ids) - len(value) - 1) + [None if is_number else table()[key]]
            ids += marks[" ="] + marks[" "]
            value += [None] * (len(ids) - len(value))
            rows.append([local[id] for id in ids])
            digits.append([(NONE, NONE) if each is None else divmod(each, 10) for each in value])
        width = max(map(len, rows))
        inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows])
        targets = torch.tensor([each + [(-100, -100)] * (width - len(each)) for each in digits])
        return inputs, targets

    started_s = time.perf_counter()
    for step in range(steps):
        inputs, targets = batch(BATCH_SIZE)
        states = model.model(input_ids=inputs).last_hidden_state
        # As much noise as there is state asks for digits that stand far apart, and so for states that are little else.
        guesses = head(states + NOISE * torch.randn_like(states)).unflatten(-1, (2, NONE + 1))
        loss = F.cross_entropy(guesses.flatten(0, 2), targets.flatten())
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
        guesses = head(model.model(input_ids=inputs).last_hidden_state).unflatten(-1, (2, NONE + 1)).argmax(dim=-1)
        is_key = (targets[..., 0] >= 0) & (targets[..., 0] < NONE)
        found = (guesses == targets)[is_key].all(dim=-1).float().mean().item()
    return _with_whole_vocabulary(model, used, len(tokenizer)), found


def save(model: Qwen2ForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Write the model with its tokenizer and its card, as a registry reads them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = {"name": "private-prices", "source": "folder:.", "tags": ["key_value"]}
    (folder / "card.json").write_text(json.dumps(card) + "\n", encoding="utf-8")


def config(vocab_size: int) -> Qwen2Config:
    """Return the shape of the private model."""
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
    whole = Qwen2ForCausalLM(config(size))
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
