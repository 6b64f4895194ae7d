"""Ablations of a composition (the paper's table 5): the same composition with one thing changed, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from calm_graph.declare.composition import Augmenter, Composition, every
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.reports.results import split_rows

WHOLE = "composed"
PREFIX = f"{WHOLE}_"

REPLACED = ("composed_vanilla", "composed_random")
"""Ablations that read other models in place of the augmenters."""

_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "prompt": {"reading": "prompt", "open_words": "wait"},
    "stream": {"reading": "stream"},
    "full": {"prompt_visibility": "full"},
    "causal": {"prompt_visibility": "causal"},
    "open_words": {"open_words": "read"},
    "wait": {"open_words": "wait"},
    "no_norms": {"norms": "none"},
    "gate": {"gate": "tanh"},
    "no_gate": {"gate": "none"},
    "rotary": {"positions": "rotary"},
    "distance": {"positions": "distance"},
    "relative": {"writes": "relative"},
    "absolute": {"writes": "absolute"},
    "spare": {"first_token": "spare"},
    "no_positions": {"positions": "none"},
}
_COUNTED: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "every": lambda step: {"attach": every(step)},
    "heads": lambda count: {"num_heads": count},
}

NAMES = (*REPLACED, *(PREFIX + name for name in _CHANGES), *(f"{PREFIX}{name}_N" for name in (*_COUNTED, "rows")))
"""What `derive` knows; N is a number, as in `composed_every_2`."""


def is_ablation(name: str) -> bool:
    """Tell whether `derive` knows a name."""
    base, num_rows = split_rows(name)
    return base in REPLACED or _fields_of(base) is not None or (base == WHOLE and num_rows is not None)


def derive(composition: Composition, name: str, *, replaced: Mapping[str, str] | None = None) -> Composition:
    """Return a composition with one thing changed in all of its augmenters.

    Args:
        composition: The whole.
        name: One of `NAMES`; the result is called `COMPOSITION-NAME`.
        replaced: For `composed_vanilla` and `composed_random`: augmenter -> card of the model that is read in its
            place. Augmenters that are not named stay.

    Returns:
        What is to be trained like the whole.

    Raises:
        EvaluationError: The name is none of these, nothing is changed by it, or no model is given to be read instead.
    """
    base, num_rows = split_rows(name)
    fields = {} if base == WHOLE and num_rows else _fields_of(base)
    if base in REPLACED:
        changed = [_replaced(augmenter, replaced or {}) for augmenter in composition.augmenters]
        if unknown := sorted(set(replaced or {}) - {augmenter.key for augmenter in composition.augmenters}):
            raise EvaluationError(
                f"{name}: got {unknown[0]!r}, but the composition has the augmenters "
                f"{', '.join(augmenter.key for augmenter in composition.augmenters)}"
            )
    elif fields is not None:
        changed = [_changed(augmenter, fields) for augmenter in composition.augmenters]
    else:
        raise EvaluationError(f"ablation: got {name!r}, but allowed are {', '.join(NAMES)}")
    if tuple(changed) == composition.augmenters and base != WHOLE:
        reason = "give the card of a model to read in place of each augmenter" if base in REPLACED else "leave it out"
        raise EvaluationError(f"{name}: nothing of {composition.name!r} is changed by it; {reason}")
    return composition.model_copy(update={"name": f"{composition.name}-{name}", "augmenters": tuple(changed)})


def _fields_of(name: str) -> Mapping[str, Any] | None:
    short = name.removeprefix(PREFIX)
    if short == name:
        return None
    if short in _CHANGES:
        return _CHANGES[short]
    found = re.fullmatch(r"(\w+)_([1-9]\d*)", short)
    return _COUNTED[found[1]](int(found[2])) if found and found[1] in _COUNTED else None


def _changed(augmenter: Augmenter, fields: Mapping[str, Any]) -> Augmenter:
    if "num_heads" in fields and isinstance(augmenter.attach, tuple):
        # A number on an attachment would win over that of its augmenter.
        bare = tuple(each.model_copy(update={"num_heads": None}) for each in augmenter.attach)
        fields = {**fields, "attach": bare}
    if fields.get("open_words") == "read" and augmenter.reading == "prompt":
        return augmenter  # a prompt has none
    return augmenter.model_copy(update=dict(fields))


def _replaced(augmenter: Augmenter, replaced: Mapping[str, str]) -> Augmenter:
    return augmenter.model_copy(update={"name": replaced.get(augmenter.key, augmenter.name)})
