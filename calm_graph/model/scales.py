"""How much each augmenter counts in the calls of one thread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch

Scale = float | torch.Tensor
"""A factor on what an augmenter contributes (0 is off), or one factor a row, float [B]."""

# Factors by owner (its id) and augmenter. A context variable is private to a thread; it is not an attribute of the
# owner because a model must stay copyable.
_SCALES: ContextVar[Mapping[tuple[int, str], Scale]] = ContextVar("calm_graph_scales")


@contextmanager
def scales_in_force(owner: object, scales: Mapping[str, Scale]) -> Iterator[None]:
    """Put factors in force inside the `with`, over those of a `with` around it.

    Args:
        owner: Whose augmenters.
        scales: Augmenter name -> factor.

    Yields:
        Nothing.
    """
    token = _SCALES.set({**_SCALES.get({}), **{(id(owner), name): scale for name, scale in scales.items()}})
    try:
        yield
    finally:
        _SCALES.reset(token)


def scale_in_force(owner: object, name: str, *, default: Scale) -> Scale:
    """The factor of one augmenter; `default` where no `with` names it."""
    return _SCALES.get({}).get((id(owner), name), default)


def is_off(scale: Scale) -> bool:
    """Whether the augmenter need not run. Factors by row are not looked at: a GPU would have to wait."""
    return not isinstance(scale, torch.Tensor) and scale == 0


def keyword(name: str) -> str:
    """A model's name as Python lets one write it as a keyword."""
    return re.sub(r"[^0-9A-Za-z]", "_", name)
