"""Baselines by name, as systems to evaluate beside a composition; each is trained or made when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from calm_graph.data.columns import Columns
from calm_graph.data.sources import Rows
from calm_graph.declare.base import near
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines import ablations
from calm_graph.evaluate.baselines.ablations import is_ablation
from calm_graph.evaluate.baselines.lora import WEIGHTS, merge_updates
from calm_graph.evaluate.baselines.merge import merge
from calm_graph.evaluate.baselines.reference import Reference
from calm_graph.evaluate.baselines.routing import PromptRule, RoutingSystem, TaskRule
from calm_graph.evaluate.baselines.soft_ensemble import soft_ensemble
from calm_graph.evaluate.baselines.train import LEARNING_RATES, is_trained, train_baselines
from calm_graph.evaluate.baselines.trained_anchor import Description
from calm_graph.evaluate.run import Candidate
from calm_graph.evaluate.select import Setup
from calm_graph.evaluate.systems.asking import Asking
from calm_graph.evaluate.systems.base import System
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.model.composed import ComposedModel
from calm_graph.progress import Show
from registry import ModelCard
from registry.fingerprint import file_digest
from registry.weights import identity, load_causal_lm, load_tokenizer

UNTRAINED = ("routing", "soft_ensemble", "merge")
"""Baselines that take the models as they are."""

NAMES = (*LEARNING_RATES, *UNTRAINED, *ablations.NAMES)
"""What can be asked for."""


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """How baselines are made.

    Args:
        train_data: The rows that the composition was trained on; None takes baselines that are trained already.
        eval_data: Its held-out rows.
        columns: As in `fit`.
        changes: Settings of the composition's run that are others in theirs.
        learning_rates: Name -> the peak of its learning rate.
        replaced: For `composed_vanilla`: augmenter -> card of the model that is read in its place.
        routing: Whether a request goes where its task's dev rows, or its own prompt, are predicted best.
        merge_base: Card of what the augmenters were trained from; None merges linearly.
        merge_alpha: How much of an augmenter is put into the anchor.
        show: How progress of training and choosing is shown.
    """

    train_data: Rows | None = None
    eval_data: Rows | None = None
    columns: Columns | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    routing: Literal["task", "prompt"] = "task"
    merge_base: str | None = None
    merge_alpha: float = 0.5
    show: Show = "auto"


def select_baselines(
    names: Sequence[str], setup: Setup, options: BaselineOptions | None = None, *, reference: Reference | None = None
) -> list[Candidate]:
    """Return the baselines of these names; none is trained or loaded yet.

    Those that are trained are kept in `baselines/NAME` in the folder of the run; called again, they are gone on with.

    Args:
        names: Of `NAMES`; N is a number.
        setup: What systems are made of; its checkpoint is a folder here.
        options: How they are made.
        reference: What they are compared with; None reads it from the checkpoint.

    Returns:
        The systems; `merge` is one for each augmenter.

    Raises:
        EvaluationError: There is no baseline of a name.
        DeclarationError: The checkpoint cannot be read.
    """
    for name in names:
        if name not in UNTRAINED and not is_trained(name):
            raise EvaluationError(f"baselines: got {name!r}, but there are {', '.join(NAMES)}{near(name, NAMES)}")
    maker = _Maker(setup, options or BaselineOptions(), reference or Reference.of(setup.checkpoint))
    return [candidate for name in dict.fromkeys(names) for candidate in maker.candidates(name)]


@dataclass(frozen=True)
class _Maker:
    setup: Setup
    options: BaselineOptions
    reference: Reference

    def candidates(self, name: str) -> list[Candidate]:
        if name == "merge":
            cards = self._augmenters()
            return [
                Candidate("merge" if len(cards) == 1 else f"merge_{card.name}", partial(self._merged, card))
                for card in cards
            ]
        makers: dict[str, Callable[[], System]] = {"routing": self._routing, "soft_ensemble": self._ensemble}
        return [Candidate(name, makers.get(name) or partial(self._trained, name))]

    @property
    def _dtype(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self.setup.dtype))

    @property
    def _placed(self) -> dict[str, Any]:
        """Where and how plain models run."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {"dtype": self._dtype, "device": device, "batch_size": self.setup.batch_size}

    def _augmenters(self) -> list[ModelCard]:
        plan = self.reference.plan
        cards = [plan.run(edge.source).card for edge in plan.into(plan.anchor.name)]
        if unfit := [card.name for card in cards if card.runtime != "torch" or not card.causal]:
            raise EvaluationError(f"augmenter {unfit[0]!r} is no causal language model in torch, so it answers nothing")
        return cards

    def _routing(self) -> System:
        cards = [self.reference.anchor, *self._augmenters()]
        systems = [PlainSystem.of_card(card, name=card.name, **self._placed) for card in cards]
        rule: TaskRule | PromptRule = PromptRule(systems)
        if self.options.routing == "task":
            asking = Asking(self.setup.predictions, self.options.show, self.setup.stop)
            rule = TaskRule.chosen_on_dev(
                self.setup.tasks, systems, asking=asking, data=self.setup.data, seed=self.setup.seed
            )
        return RoutingSystem(systems, rule, rule_identity=rule.identity)

    def _ensemble(self) -> System:
        return soft_ensemble([self.reference.anchor, *self._augmenters()], **self._placed)

    def _merged(self, augmenter: ModelCard) -> System:
        base = self.options.merge_base and self.reference.registry.get(self.options.merge_base)
        models = [self.reference.anchor, augmenter, *([base] if base else [])]
        model = merge(models[0], augmenter, base=base or None, alpha=self.options.merge_alpha, dtype=self._dtype)
        return PlainSystem(
            cast(Any, model).to(self._placed["device"]),
            load_tokenizer(self.reference.anchor),
            name="merge" if len(self._augmenters()) == 1 else f"merge_{augmenter.name}",
            identity=f"merge {self.options.merge_alpha} {[identity(card) for card in models]} {self._dtype}",
            batch_size=self.setup.batch_size,
        )

    def _trained(self, name: str) -> System:
        folder = self.setup.out / "baselines" / name
        if self.options.train_data is not None:
            rates = self.options.learning_rates
            train_baselines(
                self.reference,
                [name],
                data=self.options.train_data,
                eval_data=self.options.eval_data,
                columns=self.options.columns,
                settings=(self.reference.settings or TrainSettings()).updated(**self.options.changes),
                learning_rates={name: rates[name]} if name in rates else None,
                replaced=self.options.replaced,
                out=folder.parent,
                show=self.options.show,
            )
        elif not (folder / "result.json").is_file():
            raise EvaluationError(
                f"{name}: is not trained in {folder}; give the rows that the composition was trained on (--train-data)"
            )
        if is_ablation(name):
            model = ComposedModel.from_pretrained(
                folder, registry=self.reference.registry, dtype=self._dtype, device_map=self._placed["device"]
            )
            return EngineSystem(model, name=name, batch_size=self.setup.batch_size)
        return load_baseline(folder, self.reference, name=name, **self._placed)


def load_baseline(
    folder: str | Path,
    reference: Reference,
    *,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
) -> PlainSystem:
    """Load a trained anchor as a system.

    Args:
        folder: What `train_baselines` wrote for `lora` or `full_finetune`.
        reference: Knows the anchor.
        name: What results call it.
        dtype: Of the weights it runs in; updates are merged in float32.
        device: Where it runs.
        batch_size: Prompts answered and rows scored at once.

    Returns:
        The system.

    Raises:
        CheckpointError: The folder holds no baseline.
        FingerprintError: It was trained on another anchor than the one that is here.
    """
    folder = Path(folder)
    found = Description.read(folder)
    if found.kind == "lora":
        anchor = reference.anchor.model_copy(update={"fingerprint": found.anchor.fingerprint})
        model = load_causal_lm(anchor, dtype=torch.float32)
        merge_updates(model, folder)
        trained = f"{file_digest(folder / WEIGHTS)} on {found.anchor.fingerprint}"
    else:
        own = ModelCard(name=found.anchor.name, source=f"folder:{folder.absolute()}")
        model = load_causal_lm(own, dtype=torch.float32)
        trained = identity(own)
    return PlainSystem(
        cast(Any, model).to(device, dtype),
        load_tokenizer(reference.anchor),
        name=name,
        identity=f"{found.kind} {trained} {dtype}",
        few_shot=False,
        batch_size=batch_size,
    )
