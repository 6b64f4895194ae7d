"""Answers from an engine in this process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from calm_graph.errors import OverloadedError
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.engine_thread import EngineThread
from calm_graph.generate.requests import GenerationRequest, Output
from calm_graph.generate.selector import Selector
from calm_graph.http.client import ServedModel
from calm_graph.model.composed import ComposedModel
from calm_graph.plan.draw import colours, mermaid, svg


class LocalClient:
    """An `EngineClient` without Ray: one process, one engine.

    Args:
        models: As `load_models` returns them.
        settings: Of the engine.
        selectors: As `Engine` takes them.
    """

    def __init__(
        self,
        models: Mapping[str, ComposedModel],
        settings: EngineSettings | None = None,
        *,
        selectors: Mapping[str, Selector] | None = None,
    ) -> None:
        engine = Engine(models, settings, selectors=selectors)
        self._tokenizer = engine.tokenizer
        self._models = served_models(engine)
        self.thread = EngineThread(engine)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What can be asked, by name."""
        return self._models

    @property
    def tokenizer(self) -> Any:
        """The anchor's tokenizer."""
        return self._tokenizer

    def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """See `EngineClient.generate`."""
        return self.thread.generate(request)

    def refusal(self) -> OverloadedError | None:
        """See `EngineClient.refusal`."""
        return self.thread.refusal

    async def statistics(self) -> Mapping[str, Any]:
        """What the engine counts."""
        return asdict(self.thread.statistics())

    async def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        return self.thread.is_ready

    def close(self, *, drain_s: float = 0.0) -> None:
        """End the engine, after `drain_s` seconds for what is under way."""
        self.thread.close(drain_s=drain_s)


def served_models(engine: Engine) -> dict[str, ServedModel]:
    """Return what an engine can be asked: its compositions, and the anchor alone."""
    created = int(time.time())
    found = {}
    for name, model in engine.models.items():
        plan = model.plan
        found[name] = ServedModel(
            name=name,
            anchor=plan.anchor.name,
            augmenters=tuple(dict.fromkeys(edge.source for edge in plan.edges)),
            context_length=engine.context_length,
            created=created,
            graph={
                "composition": plan.composition.model_dump(mode="json"),
                "mermaid": mermaid(plan),
                "svg": svg(plan),
                "colours": colours(plan),
                "attachments": [
                    {
                        "augmenter": planned.source,
                        "augmenter_layer": planned.augmenter_layer,
                        "anchor": planned.target,
                        "anchor_layer": planned.anchor_layer,
                    }
                    for planned in plan.attachments
                ],
                "models": {
                    run.name: {"num_layers": run.num_layers, "num_blocks": run.num_blocks, "reading": run.reading}
                    for run in plan.runs
                },
            },
        )
    anchor = engine.anchor_name
    if anchor not in found:
        found[anchor] = ServedModel(
            name=anchor,
            anchor=anchor,
            augmenters=(),
            context_length=engine.context_length,
            created=created,
            graph={},
        )
    return found
