"""The edges of a plan at work: what a model offers to its readers, and what their attachments write of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from calm_graph.augmenters.taps import Write
from calm_graph.errors import InputError
from calm_graph.model.attachment import Attachment
from calm_graph.model.request import EdgeContext, Request
from calm_graph.model.scales import Scale, is_off, keyword, scale_in_force, scales_in_force
from calm_graph.model.tokens import Tokens
from calm_graph.model.writes import note_write
from calm_graph.plan.parts import Edge, Plan


class Edges(nn.Module):
    """Every attachment of a plan, into the anchor and between augmenters, and how much each edge counts.

    Args:
        plan: What reads what, where.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.attachments = nn.ModuleDict(
            {
                planned.key: Attachment(
                    source_width=planned.source_width,
                    target_width=planned.target_width,
                    num_heads=planned.num_heads,
                    head_dim=planned.head_dim,
                    norms=planned.norms,
                    gate=planned.gate,
                    positions=planned.positions,
                    writes=planned.writes,
                    first_token=planned.first_token,
                )
                for planned in plan.attachments
            }
        )

    def place(self, devices: Mapping[str, torch.device]) -> None:
        """Move attachments to the model that they write into.

        Args:
            devices: Run name -> device.
        """
        for edge in self.plan.edges:
            for planned in edge.attachments:
                self.attachments[planned.key].to(devices[edge.target])

    @contextmanager
    def scaled(self, scales: Mapping[str, Scale]) -> Iterator[None]:
        """Scale augmenters inside the `with`, in this thread only.

        Args:
            scales: Augmenter name (or the name with underscores for dots and dashes) -> factor, or factors float [B].

        Raises:
            InputError: A name is not an augmenter of this composition.
        """
        known = {keyword(name): edge.source for edge in self.plan.edges for name in (edge.source, _declared(edge))}
        for name in scales:
            if keyword(name) not in known:
                raise InputError(f"augmenters: got {name!r}, but the composition has {sorted(set(known.values()))}")
        with scales_in_force(self, {known[keyword(name)]: scale for name, scale in scales.items()}):
            yield

    def scale(self, edge: Edge) -> Scale:
        """How much an edge counts here and now."""
        return scale_in_force(self, edge.source, default=edge.scale)

    def needed_runs(self) -> frozenset[str]:
        """Runs whose states reach the anchor through edges that are on."""
        needed = {self.plan.anchor.name}
        for run in reversed(self.plan.runs):
            if run.name in needed:
                needed.update(edge.source for edge in self.plan.into(run.name) if not is_off(self.scale(edge)))
        return frozenset(needed)

    def is_needed(self, scales: Mapping[str, Scale]) -> bool:
        """Whether any augmenter reaches the anchor with these factors."""
        with self.scaled(scales):
            return len(self.needed_runs()) > 1

    def offer(self, request: Request, name: str, tokens: Tokens, states: Mapping[int, torch.Tensor]) -> None:
        """Turn new states into keys and values for every edge out of a run; the states are not needed after that.

        Args:
            request: Whose contexts they join.
            name: Of the run.
            tokens: Its new tokens.
            states: Layer -> float [B, S, C].
        """
        if request.kept is not None:
            request.kept[name] = (tokens, states)
        for edge in self.plan.out_of(name):
            into_anchor = edge.target == self.plan.anchor.name
            if (into_anchor and request.kept is not None) or (not into_anchor and request.stored is not None):
                continue
            layers = {}
            for planned in edge.attachments:
                attachment = self.attachments[planned.key]
                assert isinstance(attachment, Attachment)
                layers[planned.key] = attachment.context(states[planned.augmenter_layer], tokens.index_BS)
            is_open = edge.prompt_visibility == "full" and not request.closes_prompt
            context = EdgeContext(
                threshold_BS=tokens.thresholds(prompt_is_open=is_open),
                known_at_BS=tokens.known_at_BS,
                withdrawn_at_BS=tokens.withdrawn_at_BS,
                index_BS=tokens.index_BS,
                layers=layers,
            )
            earlier = request.contexts.get((edge.source, edge.target))
            request.contexts[edge.source, edge.target] = earlier.then(context) if earlier else context

    def writes(
        self, target: str, request: Request, *, index_BT: torch.Tensor, clock_BT: torch.Tensor | None = None
    ) -> dict[int, Write]:
        """What the attachments into one model add to its stream, by layer.

        Args:
            target: Run name.
            request: With the contexts to attend to.
            index_BT: int64, text index of the positions.
            clock_BT: int64; position t sees the tokens whose threshold is at most its clock. None: its index.
        """
        clock_BT = index_BT if clock_BT is None else clock_BT
        by_layer: dict[int, list[Write]] = defaultdict(list)
        for edge in self.plan.into(target):
            context = request.contexts.get((edge.source, edge.target))
            scale = self.scale(edge)
            if context is None or is_off(scale):
                continue
            # Once an edge, to where its attachments are: all that counts tokens is elsewhere if the models are.
            device = next(self.attachments[edge.attachments[0].key].parameters()).device
            visible_BTS = context.visible(clock_BT.to(device))
            for planned in edge.attachments:
                by_layer[planned.anchor_layer].append(
                    _attending(
                        planned.key,
                        self.attachments[planned.key],
                        *context.layers[planned.key],
                        visible_BTS=visible_BTS,
                        index_BT=index_BT.to(device),
                        source_index_BS=context.index_BS.to(device),
                        scale=scale,
                    )
                )
        return {layer: _adding(terms) for layer, terms in by_layer.items()}


def _declared(edge: Edge) -> str:
    """The name in the declaration: a further reading of a model runs as `composition/name`."""
    return edge.source.rpartition("/")[2]


def _attending(
    key: str,
    attachment: nn.Module,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    visible_BTS: torch.Tensor,
    index_BT: torch.Tensor,
    source_index_BS: torch.Tensor,
    scale: Scale,
) -> Write:
    def write(hidden_BTD: torch.Tensor) -> torch.Tensor:
        out_BTD: torch.Tensor = attachment(
            hidden_BTD,
            keys=keys,
            values=values,
            visible_BTS=visible_BTS,
            index_BT=index_BT,
            source_index_BS=source_index_BS,
        )
        if isinstance(scale, torch.Tensor):
            out_BTD = out_BTD * scale.to(out_BTD)[:, None, None]
        elif scale != 1:
            out_BTD = out_BTD * scale
        note_write(key, out_BTD, hidden_BTD)
        return out_BTD

    return write


def _adding(terms: list[Write]) -> Write:
    def write(hidden_BTD: torch.Tensor) -> torch.Tensor:
        added = [term(hidden_BTD) for term in terms]
        return hidden_BTD + sum(added[1:], start=added[0])

    return write
