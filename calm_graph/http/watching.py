"""What people and machines look at: models, graphs, health, metrics, version."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response
from openai.types import Model
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from calm_graph.http.client import ServedModel
from calm_graph.http.errors import ApiError
from calm_graph.http.service import Service

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # an engine that does not say that it is ready within this time is not


def watching_routes(service: Service) -> APIRouter:
    """Return the routes that only tell."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List what can be asked; the default comes first."""
        return {"object": "list", "data": [_model(model) for model in service.client.models.values()]}

    @router.get("/v1/models/{id:path}", response_model=Model)
    async def retrieve_model(id: str) -> dict[str, Any]:
        """Describe what can be asked by one name."""
        return _model(service.model(id))

    @router.get("/v1/compositions")
    async def list_compositions() -> dict[str, Any]:
        """List the compositions with their graphs, and whether their anchor reads conversations."""
        compositions = [
            {
                "id": model.name,
                "object": "composition",
                "anchor": model.anchor,
                "augmenters": list(model.augmenters),
                "chat_template": bool(service.client.tokenizer.chat_template),
                "graph": dict(model.graph),
            }
            for model in service.client.models.values()
            if model.graph
        ]
        return {"object": "list", "data": compositions}

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Say that this process lives."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """Say whether a request would be answered now."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                is_ready = await service.client.is_ready()
        except Exception as error:
            logger.warning("the engine does not say whether it is ready: %r", error)
            is_ready = False
        if not is_ready:
            raise ApiError(503, "the engine is not ready", code="not_ready", headers={"Retry-After": "1"})
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Show the metrics in Prometheus' text format."""
        statistics = None
        try:
            async with asyncio.timeout(_PATIENCE_S):
                statistics = await service.client.statistics()
        except Exception as error:
            logger.warning("the engine gives no statistics: %r", error)
        return Response(service.metrics.text(statistics), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        """Say which version of calm_graph runs."""
        return {"version": version("calm-graph")}

    return router


def _model(model: ServedModel) -> dict[str, Any]:
    """Return OpenAI's description of a model, with vLLM's additions."""
    fields: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "calm_graph",
        "root": model.name,
        "parent": None if model.anchor == model.name else model.anchor,
        "max_model_len": model.context_length,
    }
    return Model(**fields).model_dump(mode="json", exclude_unset=True)
