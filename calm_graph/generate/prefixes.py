"""Prompts that were read, kept for requests that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.generate.batch import Group
from calm_graph.generate.prefill import Prefill
from calm_graph.generate.requests import GenerationRequest

_LEAST = 32
"""Tokens that a prompt counts for at least: what is kept beside its tokens takes room as well."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A prompt that was read whole."""

    ids: Sequence[int]
    cache: RaggedCache
    group: Group | None
    logits_TV: torch.Tensor
    contributions: dict[str, float]


class Prefixes:
    """Keeps the newest prompts.

    What may be used again follows from visibility. A prompt that is the same as a whole gives the same states whoever
    reads it. Without augmenters each state depends on the text before it alone, so any beginning can be used. With an
    augmenter whose prompt is open to every position, the anchor's first state depends on the prompt's last word: then a
    part of it is of no use.

    Args:
        max_tokens: Anchor tokens kept in all; 0 keeps none. A short prompt counts for 32.

    Attributes:
        num_tokens: Anchor tokens kept now, counted so.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self.num_tokens = 0

    def restore(self, prefill: Prefill, request: GenerationRequest) -> int:
        """Let a prompt begin with what was read before; returns how many of its tokens need not be read."""
        key = _key(prefill, request)
        kept = self._kept.get(key)
        if kept is not None and (kept.contributions or not request.contributions or prefill.group is None):
            self._kept.move_to_end(key)
            prefill.cache = kept.cache.copy()
            prefill.group = None if kept.group is None else _copy_group(kept.group)
            prefill.logits_TV = kept.logits_TV
            prefill.contributions = kept.contributions
            prefill.num_read = len(kept.ids)
            return prefill.num_read
        if prefill.group is not None:
            return 0
        alike = [(_common(each.ids, prefill.ids), place) for place, each in self._kept.items() if each.group is None]
        length, place = max(alike, key=lambda pair: pair[0], default=(0, None))
        # The last token is read again in any case, for its logits.
        length = min(length, len(prefill.ids) - 1)
        if place is None or length < 1:
            return 0
        self._kept.move_to_end(place)
        prefill.cache = self._kept[place].cache.copy(num_slots=length)
        prefill.num_read = length
        return length

    def store(self, prefill: Prefill, request: GenerationRequest) -> None:
        """Keep a prompt that was read."""
        assert prefill.logits_TV is not None
        key = _key(prefill, request)
        if _cost(prefill.ids) > self._max_tokens or key in self._kept:
            return
        self._kept[key] = _Kept(
            ids=prefill.ids,
            cache=prefill.cache.copy(),
            group=None if prefill.group is None else _copy_group(prefill.group),
            logits_TV=prefill.logits_TV,
            contributions=prefill.contributions,
        )
        self.num_tokens += _cost(prefill.ids)
        while self.num_tokens > self._max_tokens:
            self.num_tokens -= _cost(self._kept.popitem(last=False)[1].ids)


def _cost(ids: Sequence[int]) -> int:
    return max(len(ids), _LEAST)


def _key(prefill: Prefill, request: GenerationRequest) -> Hashable:
    if prefill.group is None:
        return tuple(prefill.ids)
    scales = tuple(sorted(prefill.group.scales[0].items()))
    # What is there of an answer already is not read like a prompt.
    return request.composition, scales, request.prompt_text, request.prompt_ids, request.resume_ids


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for place, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return place
    return min(len(first), len(second))


def _copy_group(group: Group) -> Group:
    return Group(group.graph, group.request.copy(), list(group.scales))
