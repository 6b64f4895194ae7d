"""The answers under way: rows of one anchor cache, which come and go between steps.

Rows may belong to different compositions over the same anchor, and may have different augmenters switched on. The
anchor runs once over all of them; augmenters and attachments run for the rows that want them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import BlockCall, Write, during
from calm_graph.model.augmenter_graph import AugmenterGraph
from calm_graph.model.request import Request
from calm_graph.model.tokens import AnchorTokens
from calm_graph.model.writes import Writes, measured_writes

Scales = Mapping[str, float]
"""Run name -> factor on what it contributes, of every augmenter of a composition."""

_ROOM_FOR_A_STEP = 8
"""Tokens of an augmenter that one anchor token may make final; a segment is at most 48 characters."""


@dataclass(slots=True)
class Group:
    """Rows of one composition that have the same augmenters switched on.

    Attributes:
        graph: The augmenters and attachments.
        request: Their text, states and contexts; row by row those of `scales`.
        scales: One for each row.
    """

    graph: AugmenterGraph
    request: Request
    scales: list[Scales]

    @property
    def key(self) -> tuple[int, frozenset[str]]:
        """Groups of one key can be joined."""
        return id(self.graph), frozenset(name for name, scale in self.scales[0].items() if scale == 0)

    @contextmanager
    def scaled(self) -> Iterator[None]:
        """Put the rows' factors in force."""
        factors: dict[str, float | torch.Tensor] = {}
        for name in self.scales[0]:
            values = [scales[name] for scales in self.scales]
            same = all(value == values[0] for value in values)
            factors[name] = values[0] if same else torch.tensor(values)
        with self.graph.edges.scaled(factors):
            yield

    def take_reads(self) -> None:
        """Take the states that services have sent, and switch off what is left out for want of them."""
        if self.request.pending:
            self.graph.take_reads(self.request)
            off = dict.fromkeys(self.request.skipped, 0.0)
            self.scales = [{**scales, **off} for scales in self.scales]

    def push(self, tokens: AnchorTokens) -> dict[int, Write]:
        """Run the augmenters on what is new.

        Args:
            tokens: Of the group's rows.

        Returns:
            What the attachments then add to the anchor's stream, by layer.
        """
        with self.scaled():
            return self.graph.push(self.request, tokens)

    def select(self, rows: Sequence[int]) -> None:
        """Keep (and repeat) rows."""
        self.request.select(torch.tensor(rows, dtype=torch.int64))
        self.scales = [self.scales[row] for row in rows]

    def join(self, other: Group) -> None:
        """Add the rows of another group of the same key."""
        self.request.join(other.request)
        self.scales += other.scales

    def has_room(self) -> list[bool]:
        """Whether each row's augmenters have room for the text of another token."""
        rows = [True] * len(self.scales)
        for name, cache in self.request.caches.items():
            limit = self.graph.plan.run(name).card.context_length
            if limit is None or cache.real_BL is None or cache.real_BL.shape[1] + _ROOM_FOR_A_STEP <= limit:
                continue
            used: list[int] = cache.real_BL.sum(dim=1).tolist()
            rows = [row and count + _ROOM_FOR_A_STEP <= limit for row, count in zip(rows, used, strict=True)]
        return rows


class Anchor:
    """Runs the frozen anchor on rows of a ragged cache.

    Args:
        module: The anchor, whose blocks are watched.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._takes = frozenset(inspect.signature(module.forward).parameters)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.module.parameters()).device

    def logits(
        self, tokens: AnchorTokens, *, cache: RaggedCache, writes: Mapping[int, Write], columns: slice
    ) -> torch.Tensor:
        """Run it on new tokens.

        Args:
            tokens: All of them real.
            cache: Of the tokens before these; they are added.
            writes: What attachments add, by layer.
            columns: Positions whose logits are wanted.

        Returns:
            float [B x columns, V], row by row.
        """
        mask_BL, positions_BT = cache.append(tokens.real_BT, tokens.index_BT)
        places_BT = torch.arange(tokens.ids_BT.numel(), device=self.device).view_as(tokens.ids_BT)[:, columns]
        places_K = places_BT.flatten()
        width = tokens.ids_BT.shape[1]
        call = BlockCall(writes=writes, positions=(places_K // width, places_K % width))
        arguments: dict[str, Any] = {
            "input_ids": tokens.ids_BT,
            "attention_mask": mask_BL.long(),
            "position_ids": positions_BT,
            "past_key_values": cache,
            "use_cache": True,
        }
        with during(call):
            output = self.module(**{name: value for name, value in arguments.items() if name in self._takes})
        logits_KV: torch.Tensor = output.logits[0]
        return logits_KV


@dataclass(slots=True)
class Batch:
    """Rows that are decoded together.

    Args:
        anchor: The anchor they share.
        cache: Its keys and values.
        lengths: Tokens in the cache, row by row.
        groups: With the rows of the batch that each holds, in the order of the group's own.
    """

    anchor: Anchor
    cache: RaggedCache = field(default_factory=RaggedCache)
    lengths: list[int] = field(default_factory=list)
    groups: list[tuple[Group, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest row; each row takes as much room."""
        return max(self.lengths, default=0)

    def join(self, cache: RaggedCache, lengths: Sequence[int], group: Group | None) -> None:
        """Add rows at the end.

        Args:
            cache: The anchor's keys and values; used up.
            lengths: Tokens in it, row by row.
            group: The rows' augmenters; None if none is on. Used up.
        """
        rows = [*range(len(self), len(self) + len(lengths))]
        self.cache.join(cache, num_rows=len(self), num_new=len(lengths))
        self.lengths += lengths
        if group is None:
            return
        for own, own_rows in self.groups:
            if own.key == group.key:
                own.join(group)
                own_rows += rows
                return
        self.groups.append((group, rows))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        if not rows:
            self.cache, self.lengths, self.groups = RaggedCache(), [], []
            return
        new_place = {row: place for place, row in enumerate(rows)}
        groups = []
        for group, own_rows in self.groups:
            kept = [place for place, row in enumerate(own_rows) if row in new_place]
            if kept:
                if len(kept) < len(own_rows):
                    group.select(kept)
                groups.append((group, [new_place[own_rows[place]] for place in kept]))
        self.groups = groups
        self.cache.select(torch.tensor(rows))
        self.cache.trim()
        self.lengths = [self.lengths[row] for row in rows]

    def has_room(self) -> list[bool]:
        """Whether each row's augmenters have room for the text of another token."""
        rows = [True] * len(self)
        for group, own_rows in self.groups:
            for row, has_room in zip(own_rows, group.has_room(), strict=True):
                rows[row] = has_room
        return rows

    def step(self, ids: Sequence[int], *, measure: bool) -> tuple[torch.Tensor, list[dict[str, float]]]:
        """Add one token to every row.

        Args:
            ids: Row by row.
            measure: Whether to measure what augmenters write.

        Returns:
            Logits, float [B, V], and for each row what `contributions` says (nothing, if it is not measured).
        """
        device = self.anchor.device
        tokens = AnchorTokens(
            ids_BT=torch.tensor(ids, device=device)[:, None],
            real_BT=torch.ones(len(ids), 1, dtype=torch.bool, device=device),
            index_BT=torch.tensor(self.lengths, device=device)[:, None],
        )
        parts: list[Part] = []
        for group, rows in self.groups:
            measured = Writes(last_position=True) if measure else None
            whole = rows == [*range(len(self))]
            rows_B = None if whole else torch.tensor(rows, device=device)
            parts.append(Part(rows_B, group.push(tokens if rows_B is None else _rows(tokens, rows_B)), measured))
        logits_BV = self.anchor.logits(tokens, cache=self.cache, writes=_joined(parts), columns=slice(None))
        self.lengths = [length + 1 for length in self.lengths]
        shares: list[dict[str, float]] = [{} for _ in ids]
        for (group, rows), part in zip(self.groups, parts, strict=True):
            if part.measured is not None:
                for row, share in zip(rows, contributions(group, part.measured), strict=True):
                    shares[row] = share
        return logits_BV, shares


@dataclass(frozen=True, slots=True)
class Part:
    """What one group adds to the stream.

    Args:
        rows_B: Its rows, int64; None is all of them, in order.
        writes: By layer.
        measured: Where what they add is measured, if it is.
    """

    rows_B: torch.Tensor | None
    writes: Mapping[int, Write]
    measured: Writes | None


def contributions(group: Group, measured: Writes) -> list[dict[str, float]]:
    """For each row, augmenter -> length of what it added to the anchor's stream over the stream's, mean over layers."""
    anchor = group.graph.plan.anchor.name
    shares = measured.row_shares()
    found: list[dict[str, float]] = [{} for _ in group.scales]
    for edge in group.graph.plan.into(anchor):
        layers = [shares[planned.key] for planned in edge.attachments if planned.key in shares]
        for row, values in enumerate(zip(*layers, strict=True)):
            found[row][edge.source] = sum(values) / len(values)
    return found


def _joined(parts: Sequence[Part]) -> dict[int, Write]:
    return {layer: _write(parts, layer) for layer in sorted({layer for part in parts for layer in part.writes})}


def _write(parts: Sequence[Part], layer: int) -> Write:
    def write(hidden_BTD: torch.Tensor) -> torch.Tensor:
        written = hidden_BTD
        for part in parts:
            if layer not in part.writes:
                continue
            with _measuring(part.measured):
                if part.rows_B is None:
                    return part.writes[layer](hidden_BTD)
                if written is hidden_BTD:
                    written = hidden_BTD.clone()
                written[part.rows_B] = part.writes[layer](hidden_BTD[part.rows_B])
        return written

    return write


@contextmanager
def _measuring(measured: Writes | None) -> Iterator[None]:
    if measured is None:
        yield
        return
    with measured_writes(measured):
        yield


def _rows(tokens: AnchorTokens, rows_B: torch.Tensor) -> AnchorTokens:
    return AnchorTokens(ids_BT=tokens.ids_BT[rows_B], real_BT=tokens.real_BT[rows_B], index_BT=tokens.index_BT[rows_B])
