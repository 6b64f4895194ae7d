"""One run, checked and ready: what every worker needs to train it, in this process or in many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from calm_graph.data.samples import Dataset
from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import TrainingError
from calm_graph.generate.selector import read_selector
from calm_graph.model.build import build_model
from calm_graph.model.checkpoint import put_tensors
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.parts import Plan
from calm_graph.train.chosen import chosen_scales
from calm_graph.train.folder import RunFolder
from calm_graph.train.loop import Loop, TrainResult
from calm_graph.train.progress import Reporter
from calm_graph.train.workers import Workers
from registry import Registry


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that another process can carry out.

    Args:
        plan: Of the composition.
        registry: Where the trained compositions in the plan are looked up.
        dataset: What it is trained on, tokenised.
        eval_dataset: Held-out samples, or None.
        folder: Opened; where an unfinished run is gone on from.
        settings: Of the run.
        start: Trained tensors to start from; None starts with fresh attachments.
        load_augmenters: Whether augmenters run; they need not where the data sets bring their states.
    """

    plan: Plan
    registry: Registry
    dataset: Dataset
    eval_dataset: Dataset | None
    folder: RunFolder
    settings: TrainSettings
    start: Mapping[str, torch.Tensor] | None = None
    load_augmenters: bool = True

    def build(self, device: torch.device) -> ComposedModel:
        """Load the frozen models and make the attachments that training starts from."""
        # Most CPUs have no bf16 arithmetic: with SmolLM2-135M on one, a forward took 5 and a backward 26 times as long.
        dtype = torch.float32 if device.type == "cpu" and self.settings.precision == "fp32" else None
        model = build_model(
            self.plan,
            registry=self.registry,
            dtype=dtype,
            seed=self.settings.seed,
            load_augmenters=self.load_augmenters,
            sharding=self.settings.sharding,
            placement=self.settings.placement,
        )
        if self.start is not None:
            put_tensors(model, self.start, where="what training starts from")
        return model

    def _selected(self, dataset: Dataset, model: ComposedModel) -> Dataset:
        if self.settings.selector is None:
            return dataset
        selector = read_selector(self.settings.selector, model)
        return replace(dataset, scales_of=partial(chosen_scales, selector, model))

    def run(
        self,
        model: ComposedModel,
        *,
        workers: Workers,
        reporter: Reporter,
        stop_requested: Callable[[], bool],
    ) -> TrainResult:
        """Train a model in this process, as one of the workers, from the last state that the folder holds.

        Args:
            model: From `build`.
            workers: Who trains.
            reporter: Hears of every step, in the first worker.
            stop_requested: Asked at every step whether to save and stop.

        Returns:
            How it ended.

        Raises:
            TrainingError: The loss is no number, or the state does not fit.
        """
        self.folder.fetch()
        if workers.is_first:
            self.folder.remove_leftovers()
        if self.settings.placement:
            workers = replace(workers, device=next(model.anchor.parameters()).device)
        else:
            model.to(workers.device)  # type: ignore[arg-type]
        if self.settings.activation_checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(self.settings.seed)
        loop = Loop(
            model=model,
            dataset=self._selected(self.dataset, model),
            eval_dataset=None if self.eval_dataset is None else self._selected(self.eval_dataset, model),
            folder=self.folder,
            settings=self.settings,
            reporter=reporter,
            stop_requested=stop_requested,
            workers=workers,
        )
        return loop.run(self.folder.last_state())


def find_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is a GPU when there is one.

    Raises:
        TrainingError: torch does not know the name.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise TrainingError(f"settings.device: got {name!r}: {error}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
