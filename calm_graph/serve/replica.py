"""One engine on the cluster."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import torch

from calm_graph.errors import InputError, ServingError
from calm_graph.generate.models import load_models
from calm_graph.generate.requests import GenerationRequest, Output
from calm_graph.generate.selector import read_selector
from calm_graph.http.client import ServedModel
from calm_graph.serve.local import LocalClient
from calm_graph.serve.settings import ServeSettings
from registry import Registry
from registry import registry as default_registry

_SWITCH_INTERVAL_S = 0.0005
"""After which the thread of HTTP may interrupt the engine's between two operations, and the other way round."""


class EngineReplica:
    """Loads the compositions and answers requests to them.

    Args:
        settings: Of the deployment.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._client = load_client(settings)

    async def describe(self) -> tuple[Mapping[str, ServedModel], Any]:
        """What can be asked, and the anchor's tokenizer."""
        return self._client.models, self._client.tokenizer

    async def generate(self, request: GenerationRequest) -> AsyncIterator[list[Output]]:
        """Answer a request; see `EngineThread.generate_together`."""
        async with aclosing(self._client.thread.generate_together(request)) as together:
            async for outputs in together:
                yield outputs

    async def statistics(self) -> Mapping[str, Any]:
        """What its engine counts."""
        return await self._client.statistics()

    async def check_health(self) -> None:
        """Let Ray replace it if its engine has ended.

        Raises:
            ServingError: The engine has ended.
        """
        if not self._client.thread.is_ready:
            raise ServingError("the engine's thread has ended")

    def __del__(self) -> None:
        if (client := getattr(self, "_client", None)) is not None:
            client.close()


def load_client(settings: ServeSettings) -> LocalClient:
    """Load what is served into this process.

    Args:
        settings: Of the deployment.

    Raises:
        CheckpointError: As `from_pretrained` says, or a selector was made for another composition.
        InputError: A selector is for a composition that is not served, or is not there.
    """
    # Ray gives an actor one thread, however many CPUs it has; elsewhere torch takes all there are.
    torch.set_num_threads(max(1, int(settings.num_cpus)))
    # Python's 5 ms are as long as steps of small models: under load, refusals waited for 60 ms instead of 18.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    registry = Registry(default_registry)
    for folder in settings.registries:
        registry.add_folder(folder)
    models = load_models(
        settings.named_checkpoints,
        registry=registry,
        dtype=settings.dtype,
        device="cuda" if settings.num_gpus else None,
        exports=settings.exports,
        remotes=settings.named_remotes,
    )
    unknown = settings.selectors.keys() - models.keys()
    if unknown:
        raise InputError(f"selectors: got {', '.join(sorted(unknown))}, but the compositions are {', '.join(models)}")
    selectors = {name: read_selector(text, models[name]) for name, text in settings.selectors.items()}
    return LocalClient(models, settings.engine, selectors=selectors)
