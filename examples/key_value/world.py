"""The private table: random string keys with values of two digits, and the expressions over them."""

from __future__ import annotations

import functools
import random
import re
import string
from collections.abc import Sequence
from typing import Literal

from registry import registry
from registry.weights import load_tokenizer

Split = Literal["seen", "unseen", "tune", "dev"]
Row = dict[str, str]

ANCHOR = "qwen2.5-coder-0.5b"
NUM_KEYS = 10_000
# Two digits and, below, two tokens of each key: there is a place for each digit where the anchor would have read it.
LOWEST, HIGHEST = 10, 99
HIGHEST_NUMBER = 100
SEEN_SHARE = 0.2
DEV_SHARE = 0.2
# One example, so that a language model knows that an answer is a number; the augmenter has nothing to say about it.
EXAMPLE = "12 + 35 = 47\n"

_TABLE_SEED = 2401


@functools.cache
def table() -> dict[str, int]:
    """Return every key with its value; each value has as many keys, give or take one."""
    tokenizer = load_tokenizer(registry.get(ANCHOR))

    def has_two_tokens(key: str) -> bool:
        return all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 2 for text in (key, f" {key}"))

    rng = random.Random(_TABLE_SEED)
    keys: list[str] = []
    taken: set[str] = set()
    beginnings: set[str] = set()
    while len(keys) < NUM_KEYS:
        key = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 6)))
        # No key is the beginning of another: after its last token nothing can follow that makes it a different one.
        starts = [key[:end] for end in range(4, len(key) + 1)]
        if key not in beginnings and taken.isdisjoint(starts) and has_two_tokens(key):
            keys.append(key)
            taken.add(key)
            beginnings.update(starts)
    values = [LOWEST + index % (HIGHEST - LOWEST + 1) for index in range(NUM_KEYS)]
    rng.shuffle(values)
    return dict(zip(keys, values, strict=True))


def keys(split: Split, *, seed: int = 0) -> list[str]:
    """Return the keys of a split.

    Args:
        split: `seen` are the fifth of all keys that a composition is trained on, with every value among them; `unseen`
            the others. To choose a recipe without a look at those, train on `tune` (four fifths of `seen`) and
            measure on `dev`.
        seed: Each draws another fifth.

    Returns:
        Keys in alphabetical order.
    """
    rng = random.Random(f"split/{seed}")
    shuffled = sorted(table())
    rng.shuffle(shuffled)
    rank: dict[str, int] = {}
    count: dict[int, int] = {}
    for key in shuffled:
        value = table()[key]
        rank[key] = count[value] = count.get(value, 0) + 1
    shuffled.sort(key=rank.__getitem__)
    num_seen = round(SEEN_SHARE * NUM_KEYS)
    num_tune = round((1 - DEV_SHARE) * num_seen)
    first, last = {
        "seen": (0, num_seen),
        "unseen": (num_seen, NUM_KEYS),
        "tune": (0, num_tune),
        "dev": (num_tune, num_seen),
    }[split]
    return sorted(shuffled[first:last])


def expression(
    rng: random.Random, operands: Sequence[tuple[str, int]], *, has_product: bool = False
) -> tuple[str, int]:
    """Join operands by random plus and minus signs, one of them a multiplication sign where there is a product."""
    signs = [rng.choice("+-") for _ in operands[1:]]
    if has_product:
        signs[rng.randrange(len(signs))] = "*"
    text, first = operands[0]
    terms = [first]
    for sign, (word, value) in zip(signs, operands[1:], strict=True):
        text += f" {sign} {word}"
        if sign == "*":
            terms[-1] *= value
        else:
            terms.append(value if sign == "+" else -value)
    return text, sum(terms)


def row(
    rng: random.Random,
    names: Sequence[str],
    *,
    num_operands: int,
    number_share: float = 0.0,
    has_product: bool = False,
) -> Row:
    """Draw an expression whose answer is not negative.

    Args:
        rng: Source of randomness.
        names: Keys to draw from.
        num_operands: 1 asks for the value of a key.
        number_share: Share of operands that are numbers in place of keys.
        has_product: Whether two of the operands are multiplied.

    Returns:
        Prompt and completion.
    """
    while True:
        drawn = []
        for _ in range(num_operands):
            if rng.random() < number_share:
                number = rng.randint(1, HIGHEST_NUMBER)
                drawn.append((str(number), number))
            else:
                key = names[rng.randrange(len(names))]
                drawn.append((key, table()[key]))
        text, total = expression(rng, drawn, has_product=has_product)
        if total >= 0:
            return {"prompt": f"{EXAMPLE}{text} = ", "completion": str(total)}


def told(prompt: str) -> str:
    """Write each key as its value, in as many tokens: the anchor's space before a number would be one more."""
    return re.sub(r" ?\b([a-z]{4,6})\b", lambda found: str(table()[found[1]]), prompt)


def test_rows(task: str, *, split: Split, count: int, seed: int = 0) -> list[Row]:
    """Return the questions of a task.

    Args:
        task: `substitution`, `numeric` or `kv_arithmetic`, the lines of the paper's Table 1; or one of the last two
            with `_long`: three to six operands, half of the expressions with a product.
        split: Whose keys.
        count: So many.
        seed: Of the split and the rows.

    Returns:
        Prompt and completion.
    """
    rng = random.Random(f"test/{task}/{split}/{seed}")
    kind = task.removesuffix("_long")
    share = 1.0 if kind == "numeric" else 0.0
    names = keys(split, seed=seed)
    if kind != task:
        return [
            row(rng, names, num_operands=3 + index % 4, number_share=share, has_product=index % 8 >= 4)
            for index in range(count)
        ]
    num_operands = 1 if task == "substitution" else 2
    return [row(rng, names, num_operands=num_operands, number_share=share) for _ in range(count)]
