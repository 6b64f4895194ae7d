"""How far the states of an export are from torch's: real text, both paddings, all at once and step by step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.errors import OnnxError
from registry import ModelCard

TEXTS = (
    "Yes.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(2.5))  # a circle",
    "The ferry leaves the north pier at 7:45 and reaches the island in forty minutes. Bicycles travel free of charge, "
    "but their riders have to be on board ten minutes early. In winter there is one crossing a day; when the wind is "
    "stronger than force eight it is cancelled, and tickets can be used on any later day of the same month.",
    "Die Straßenbahn fährt heute nicht über die Brücke. 明天早上八点开会，请准时参加。 Το πλοίο φεύγει στις οκτώ. "
    "Price list: lamp 12, chair 45, shelf 130; lamp + chair = 57.",
)
_LONGEST = 128
_RELATIVE_ERROR = 1e-4
MIN_COSINE = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.98, "int4": 0.9}
"""Smallest mean cosine at any layer, for each precision."""

States = Mapping[int, torch.Tensor]


@dataclass(slots=True)
class Parity:
    """What was measured.

    Attributes:
        cosine: Layer -> mean cosine with torch's states over all positions.
        relative_error: Layer -> largest distance from torch's state at any position, relative to its length.
    """

    cosine: dict[int, float] = field(default_factory=dict)
    relative_error: dict[int, float] = field(default_factory=dict)

    def problems(self, precision: str, min_cosine: float | None = None) -> list[str]:
        """What is beyond tolerance, one line for each layer.

        Args:
            precision: Of the export.
            min_cosine: In place of the precision's own.
        """
        least = MIN_COSINE[precision] if min_cosine is None else min_cosine
        found = [
            f"layer {layer}: cosine {cosine:.6f}, but at least {least:g} is needed"
            for layer, cosine in self.cosine.items()
            if not cosine >= least  # also NaN
        ]
        if precision == "fp32":
            found += [
                f"layer {layer}: relative error {error:.2e}, but at most {_RELATIVE_ERROR:g} is allowed"
                for layer, error in self.relative_error.items()
                if not error <= _RELATIVE_ERROR
            ]
        return found


def text_rows(card: ModelCard, tokenizer: Any) -> list[list[int]]:
    """Token ids of real texts, cut to several lengths.

    Args:
        card: Of the model.
        tokenizer: Its own.

    Raises:
        OnnxError: The tokenizer gives no ids.
    """
    longest = min(_LONGEST, card.context_length or _LONGEST)
    rows = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in TEXTS]
    rows = [row for row in rows if row]
    if not rows:
        raise OnnxError(f"{card.name!r}: its tokenizer gives no ids, so its export cannot be compared with torch")
    return rows


def compare_text(
    reference: Backend, candidate: Backend, rows: Sequence[Sequence[int]], layers: Sequence[int], *, steps: bool
) -> Parity:
    """Compare two backends of a text model.

    Args:
        reference: What is right; it reads each row alone, without padding and at once.
        candidate: What is tried.
        rows: Token ids.
        layers: Layers to compare.
        steps: Whether it is run step by step, too.
    """
    expected = [_states(reference, [row], layers, side="left")[0] for row in rows]
    found = [_states(candidate, rows, layers, side=side) for side in ("left", "right")]
    if steps:
        found.append(_stepped(candidate, rows, layers))
    return _parity((got, want) for trial in found for got, want in zip(trial, expected, strict=True))


def compare_inputs(
    reference: Backend, candidate: Backend, inputs: Mapping[str, torch.Tensor], layers: Sequence[int]
) -> Parity:
    """Compare two backends of a model that reads something else than text.

    Args:
        reference: What is right.
        candidate: What is tried.
        inputs: What both read.
        layers: Layers to compare.
    """
    with torch.no_grad():
        states = [each.read(inputs, taps=frozenset(layers), writes={}) for each in (candidate, reference)]
    got, want = ({layer: found.flatten(0, 1) for layer, found in each.items()} for each in states)
    return _parity([(got, want)])


def _states(
    backend: Backend,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    side: str,
    cache: RaggedCache | None = None,
) -> list[States]:
    """Read rows in one batch; return each row's states [S, C] without the padding's."""
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    left = side == "left"
    ids_BS = torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)])
    real_BS = torch.tensor([[0] * len(pad) + [1] * len(row) for row, pad in zip(rows, pads, strict=True)]).bool()
    real_BS = real_BS if left else real_BS.flip(1)
    with torch.no_grad():
        found = backend.read_tokens(
            ids_BS,
            real_BS,
            known_at_BS=torch.zeros_like(ids_BS),
            taps=frozenset(layers),
            writes={},
            cache=cache,
        )
    return [{layer: states[row][real_BS[row]] for layer, states in found.items()} for row in range(len(rows))]


def _stepped(backend: Backend, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[States]:
    """Read rows in pieces of several sizes, which differ from row to row and may be empty."""
    cache = RaggedCache()
    done = [0] * len(rows)
    pieces: list[dict[int, list[torch.Tensor]]] = [defaultdict(list) for _ in rows]
    step = 0
    while any(count < len(row) for count, row in zip(done, rows, strict=True)):
        sizes = [max(1, len(row) // 2) if step == 0 else (step + index) % 4 for index, row in enumerate(rows)]
        step += 1
        news = [[*row[count : count + size]] for row, count, size in zip(rows, done, sizes, strict=True)]
        if not any(news):
            continue
        for index, states in enumerate(_states(backend, news, layers, side="left", cache=cache)):
            done[index] += len(news[index])
            for layer, each in states.items():
                pieces[index][layer].append(each)
    return [{layer: torch.cat(each) for layer, each in row.items()} for row in pieces]


def _parity(pairs: Iterable[tuple[States, States]]) -> Parity:
    cosines: dict[int, list[torch.Tensor]] = defaultdict(list)
    errors: dict[int, float] = defaultdict(float)
    for got, want in pairs:
        for layer in sorted(want):
            found, expected = got[layer].float(), want[layer].float()
            cosines[layer].append(torch.cosine_similarity(found.double(), expected.double(), dim=-1))
            distance = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
            # max() of a Python float and NaN would keep the float.
            errors[layer] = float(torch.tensor([errors[layer], float(distance.max())]).max())
    return Parity(
        cosine={layer: float(torch.cat(each).mean()) for layer, each in cosines.items()},
        relative_error=dict(errors),
    )
