"""Have a chat model write instructions and answer them: rows to keep, where there are no real ones of its trade.

It is given the start of a user's turn and goes on (Xu et al. 2024, arXiv 2406.08464); then it answers what it wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from calm_graph.errors import CalmGraphError, InputError
from registry import registry
from registry.errors import RegistryError
from registry.weights import load_causal_lm, load_tokenizer

PROMPT = "Instruction: {instruction}\nAnswer:"
# Stands for a user's words in the chat template, and shows where they begin.
_MARK = "@@@@"


def own_words(
    name: str, *, count: int, max_tokens: int, batch_size: int = 64, seed: int = 0
) -> Iterator[dict[str, str]]:
    """Sample instructions and answers.

    Args:
        name: Card of a model with a chat template.
        count: How many rows.
        max_tokens: The most of an instruction, and of an answer.
        batch_size: Rows written at once.
        seed: Of the draws.

    Yields:
        `{"prompt", "completion"}` rows; instructions that came out empty or unfinished are left out.

    Raises:
        InputError: The model is not one to chat with, or finishes no instruction within `max_tokens`.
    """
    card = registry.get(name)
    tokenizer = load_tokenizer(card)
    if not tokenizer.chat_template:
        raise InputError(f"model: got {name!r}, which has no chat template; name one that was trained to chat")
    model: Any = load_causal_lm(card, dtype=torch.float32)
    tokenizer.padding_side = "left"
    turn = str(tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)).split(_MARK)[0]
    torch.manual_seed(seed)

    def write(texts: Sequence[str]) -> list[str]:
        inputs = tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=True, top_k=0, top_p=0.95, max_new_tokens=max_tokens)
        new = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        return [text.split(tokenizer.eos_token)[0] for text in new]

    written = 0
    while written < count:
        instructions = [text.strip() for text in write([turn] * batch_size)]
        instructions = [text for text in instructions if 0 < len(tokenizer(text).input_ids) < max_tokens - 1]
        if not instructions:
            raise InputError(f"max_tokens: got {max_tokens}, but none of {batch_size} instructions ended; allow more")
        prompts = [PROMPT.format(instruction=text) for text in instructions]
        for prompt, answer in zip(prompts, write(prompts), strict=True):
            if answer.strip() and written < count:
                written += 1
                yield {"prompt": prompt, "completion": f" {answer.strip()}"}


def main() -> None:
    """Write the rows of a file as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.own_words", description=__doc__)
    parser.add_argument("model", help="card of a chat model")
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=80, help="of an instruction, and of an answer")
    args = parser.parse_args()
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", encoding="utf-8") as file:
            for number, row in enumerate(own_words(args.model, count=args.count, max_tokens=args.max_tokens), start=1):
                print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
                if number % 50 == 0:
                    print(f"{number} rows", flush=True)
    except (CalmGraphError, RegistryError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
