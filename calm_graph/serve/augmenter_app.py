"""An augmenter as a service of its own: token ids in, states of some layers out; the weights stay here."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import Field

from calm_graph.augmenters.wire import Wire, pack
from calm_graph.http.auth import Doorkeeper, read_keys
from calm_graph.http.disconnect import unless_gone
from calm_graph.http.errors import ApiError, BadValueError, ErrorResponse, add_error_handlers
from calm_graph.http.fields import Fields
from calm_graph.http.metrics import Metrics
from calm_graph.http.middleware import BodyReader, Recorder
from calm_graph.http.record import record_of
from calm_graph.http.settings import HttpSettings
from calm_graph.serve.augmenter_model import AugmenterModel
from calm_graph.serve.augmenter_settings import AugmenterSettings
from calm_graph.serve.batching import Batcher


class StatesBody(Fields):
    """What is asked of a service.

    Args:
        token_ids: Rows of token ids, of the augmenter's tokenizer; each is a prompt of its own.
        layers: Those to read, each once.
        wire: How states travel.
        fingerprint: Of the model that is meant; another one refuses.
    """

    token_ids: list[list[int]] = Field(min_length=1)
    layers: list[int] = Field(min_length=1)
    wire: Wire = "float32"
    fingerprint: str | None = None


def make_augmenter_app(model: AugmenterModel, settings: AugmenterSettings) -> FastAPI:
    """Return the app.

    Args:
        model: What is served.
        settings: Limits and keys.

    Returns:
        An ASGI app for any server.

    Raises:
        DeclarationError: The API keys cannot be read.
    """
    keys = read_keys(HttpSettings(api_keys_file=settings.api_keys_file))
    metrics = Metrics(settings.name)
    app = FastAPI(
        title=f"calm_graph augmenter {settings.name}",
        version=version("calm-graph"),
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    app.include_router(_routes(model, settings, metrics))
    add_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(BodyReader, max_body_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
    app.add_middleware(Doorkeeper, keys=keys, max_requests_per_key=settings.max_requests_per_key)
    app.add_middleware(Recorder, metrics=metrics)
    return app


def _routes(model: AugmenterModel, settings: AugmenterSettings, metrics: Metrics) -> APIRouter:
    router = APIRouter()
    batcher = Batcher(
        model,
        max_batch_tokens=settings.max_batch_tokens,
        max_wait_s=settings.max_wait_s,
        max_waiting=settings.max_waiting,
        metrics=metrics.registry,
    )

    @router.get("/v1/augmenter")
    async def describe() -> dict[str, Any]:
        """Say what the model is, and which of its layers may be read."""
        return model.facts.model_dump(mode="json")

    @router.get("/v1/tokenizer")
    async def show_tokenizer() -> dict[str, Any]:
        """Give the tokenizer: what is asked is token ids."""
        return {"files": dict(model.tokenizer)}

    @router.post("/v1/states", response_class=Response)
    async def read_states(body: StatesBody, request: Request) -> Response:
        """Read prompts: a safetensors file with `state.<layer>` of all rows' tokens, one row after the other."""
        _check(body, model, settings)
        record = record_of(request)
        record.model, record.num_prompt_tokens = settings.name, sum(map(len, body.token_ids))
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                rows = await unless_gone(request.receive, batcher.read(body.token_ids, body.layers))
        except TimeoutError:
            message = f"the states took longer than {settings.request_timeout_s:g} s, the most this server allows"
            raise ApiError(408, message, code="request_timeout") from None
        states = {layer: np.concatenate([row[layer] for row in rows]) for layer in body.layers}
        packed = await asyncio.to_thread(pack, states, body.wire)
        return Response(packed, media_type="application/octet-stream")

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Say that this process lives."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Show the metrics in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router


def _check(body: StatesBody, model: AugmenterModel, settings: AugmenterSettings) -> None:
    """Refuse what the model or the limits do not allow.

    Raises:
        ApiError: It is another model that is meant.
        BadValueError: A value is not allowed.
    """
    facts = model.facts
    if body.fingerprint is not None and body.fingerprint != facts.fingerprint:
        raise ApiError(
            409,
            f"fingerprint: got {body.fingerprint[:80]!r}, but this service runs {facts.fingerprint}",
            code="fingerprint_mismatch",
            param="fingerprint",
        )
    if wrong := [layer for layer in body.layers if layer not in facts.layers]:
        allowed = ", ".join(map(str, facts.layers))
        raise BadValueError("layers", f"got {wrong[0]}, but this service gives {allowed}", code="layer_not_allowed")
    if len(set(body.layers)) < len(body.layers):
        raise BadValueError("layers", "has one twice")
    if len(body.token_ids) > settings.max_rows:
        raise BadValueError("token_ids", f"got {len(body.token_ids)} rows, but this server allows {settings.max_rows}")
    num_tokens, longest = sum(map(len, body.token_ids)), max(map(len, body.token_ids))
    if num_tokens > settings.max_tokens:
        raise BadValueError("token_ids", f"got {num_tokens} tokens, but this server allows {settings.max_tokens}")
    if facts.context_length is not None and longest > facts.context_length:
        message = f"got a row of {longest} tokens, but the context of {facts.name!r} is {facts.context_length}"
        raise BadValueError("token_ids", message, code="context_length_exceeded")
    for index, ids in enumerate(body.token_ids):
        if not ids:
            raise BadValueError(f"token_ids[{index}]", "is empty")
        if min(ids) < 0 or max(ids) >= facts.vocab_size:
            wrong_id = next(id for id in ids if not 0 <= id < facts.vocab_size)
            raise BadValueError(f"token_ids[{index}]", f"got {wrong_id}, but tokens are 0..{facts.vocab_size - 1}")
