"""The world of the demo: two departments with private prices, and arithmetic expressions over them."""

from __future__ import annotations

import functools
import random
import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Task: TypeAlias = Literal["substitution", "numeric", "key_value", "mixed"]
Split: TypeAlias = Literal["seen", "unseen", "tune", "dev"]

DEPARTMENT_NAMES = ("garden", "kitchen")
NUM_KEYS = 1_200
HIGHEST_PRICE = 99
HIGHEST_ANSWER = 396
SEEN_SHARE = 0.2
DEV_SHARE = 0.2
MAX_OPERANDS = 3

# The price lists are facts of the shipped models: changing this seed means training the augmenters again.
PRICE_SEED = 2401

_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"


@dataclass(frozen=True)
class Row:
    """One example: the text that is read, and the text that answers it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Department:
    """A private price list: every key is three letters, every price is in 1..99."""

    name: str
    prices: dict[str, int]

    def keys(self, split: Split, *, seed: int = 0) -> tuple[str, ...]:
        """Return the keys of one split: `seen` is 20% of the keys, chosen so that every price occurs among them.

        Args:
            split: `seen` (keys that a composition is trained on) or `unseen` (the other 80%). To choose a recipe
                without a look at `unseen`, `seen` is cut in two: train on `tune` (four fifths of it), measure on `dev`.
            seed: which split; each seed draws another 20%.

        Returns:
            Keys in alphabetical order.
        """
        rng = random.Random(f"split/{self.name}/{seed}")
        shuffled = sorted(self.prices)
        rng.shuffle(shuffled)
        rank_within_price: dict[str, int] = {}
        taken: dict[int, int] = {}
        for key in shuffled:
            price = self.prices[key]
            rank_within_price[key] = taken.get(price, 0)
            taken[price] = rank_within_price[key] + 1
        # Stratified by price: a code for a price that no seen key has could not be learnt by any method.
        shuffled.sort(key=rank_within_price.__getitem__)
        num_seen = round(SEEN_SHARE * len(shuffled))
        num_tune = round((1 - DEV_SHARE) * num_seen)
        bounds = {
            "seen": (0, num_seen),
            "unseen": (num_seen, len(shuffled)),
            "tune": (0, num_tune),
            "dev": (num_tune, num_seen),
        }
        first, last = bounds[split]
        return tuple(sorted(shuffled[first:last]))


@functools.cache
def departments() -> dict[str, Department]:
    """Return the departments by name; no key belongs to two of them."""
    keys = list(_possible_keys())
    rng = random.Random(PRICE_SEED)
    rng.shuffle(keys)
    found: dict[str, Department] = {}
    for index, name in enumerate(DEPARTMENT_NAMES):
        own = keys[index * NUM_KEYS : (index + 1) * NUM_KEYS]
        prices = [1 + i % HIGHEST_PRICE for i in range(NUM_KEYS)]
        rng.shuffle(prices)
        found[name] = Department(name=name, prices=dict(zip(own, prices, strict=True)))
    return found


def draw_word(rng: random.Random) -> str:
    """Draw two to four letters; half of the draws have the form of keys."""
    if rng.random() < 0.5:
        return rng.choice(_possible_keys())
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 4)))


def prices() -> dict[str, int]:
    """Return every key of every department with its price."""
    return {key: price for department in departments().values() for key, price in department.prices.items()}


def is_held_out(expression: str) -> bool:
    """Tell whether a numeric expression belongs to the sixteenth that no row of numbers only is trained on."""
    return zlib.crc32(expression.encode()) % 16 == 0


def expression_row(rng: random.Random, draw: Callable[[random.Random], tuple[str, int]], *, num_operands: int) -> Row:
    """Draw `a+b-c=` with its answer; expressions whose answer leaves 0..396 are drawn again.

    Args:
        rng: Source of randomness.
        draw: Returns an operand as it is written, and its value.
        num_operands: Number of operands, at least one.

    Returns:
        The expression up to and including `=`, and its answer.
    """
    while True:
        text, total = draw(rng)
        for _ in range(num_operands - 1):
            word, value = draw(rng)
            sign = 1 if rng.random() < 0.5 else -1
            text += ("+" if sign > 0 else "-") + word
            total += sign * value
        if 0 <= total <= HIGHEST_ANSWER:
            return Row(prompt=f"{text}=", completion=str(total))


def draw_number(rng: random.Random) -> tuple[str, int]:
    """Draw a number operand in 0..99."""
    value = rng.randint(0, HIGHEST_PRICE)
    return str(value), value


def draw_key(keys: Sequence[str]) -> Callable[[random.Random], tuple[str, int]]:
    """Return a source of operands that draws from these keys."""
    price_of = prices()

    def draw(rng: random.Random) -> tuple[str, int]:
        key = keys[rng.randrange(len(keys))]
        return key, price_of[key]

    return draw


def numeric_row(rng: random.Random, *, held_out: bool, num_operands: int | None = None) -> Row:
    """Draw a numeric expression from the trained or the held-out sixteenth."""
    while True:
        count = num_operands or rng.randint(2, MAX_OPERANDS)
        row = expression_row(rng, draw_number, num_operands=count)
        if is_held_out(row.prompt) == held_out:
            return row


def test_rows(task: Task, names: Sequence[str], *, split: Split, count: int, seed: int = 0) -> list[Row]:
    """Return the test rows of one line of the comparison (paper Table 1).

    Args:
        task: `substitution` (`aba=`), `numeric` (`2+3-1=`, held-out expressions; the split does not matter),
            `key_value` (every expression over the keys of one department) or `mixed` (keys of at least two departments
            in every expression).
        names: Departments that are asked about.
        split: Whose keys (every operand is of this split).
        count: Number of rows.
        seed: Of the split and of the rows.

    Returns:
        Rows with 2 or 3 operands (one for `substitution`).

    Raises:
        ValueError: If `mixed` is asked of fewer than two departments.
    """
    rng = random.Random(f"test/{task}/{'+'.join(names)}/{split}/{seed}")
    if task == "numeric":
        return [numeric_row(rng, held_out=True) for _ in range(count)]
    if task == "mixed" and len(names) < 2:
        raise ValueError(f"task 'mixed' needs keys of at least two departments, got {list(names)}")
    keys_of = {name: departments()[name].keys(split, seed=seed) for name in names}
    rows = []
    for index in range(count):
        num_operands = 1 if task == "substitution" else rng.randint(2, MAX_OPERANDS)
        if task == "mixed":
            rows.append(_mixed_row(rng, keys_of, num_operands=num_operands))
        else:
            own = keys_of[names[index % len(names)]]
            rows.append(expression_row(rng, draw_key(own), num_operands=num_operands))
    return rows


def accuracy(answers: Sequence[str], rows: Sequence[Row]) -> float:
    """Return the share of answers that are exactly right."""
    return sum(answer == row.completion for answer, row in zip(answers, rows, strict=True)) / len(rows)


def _mixed_row(rng: random.Random, keys_of: dict[str, tuple[str, ...]], *, num_operands: int) -> Row:
    owner = {key: name for name, keys in keys_of.items() for key in keys}
    draw = draw_key(tuple(owner))
    while True:
        row = expression_row(rng, draw, num_operands=num_operands)
        words = row.prompt.rstrip("=").replace("-", "+").split("+")
        if len({owner[word] for word in words}) > 1:
            return row


@functools.cache
def _possible_keys() -> tuple[str, ...]:
    closed = [a + v + b for a in _CONSONANTS for v in _VOWELS for b in _CONSONANTS]
    opened = [v + a + w for v in _VOWELS for a in _CONSONANTS for w in _VOWELS]
    return tuple(sorted(closed + opened))
