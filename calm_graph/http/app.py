"""The HTTP app over whatever answers: OpenAI's routes, and what surrounds them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from calm_graph.http.auth import Doorkeeper, read_keys
from calm_graph.http.chat import chat_routes
from calm_graph.http.client import EngineClient
from calm_graph.http.completions import completion_routes
from calm_graph.http.errors import ErrorResponse, add_error_handlers
from calm_graph.http.metrics import Metrics
from calm_graph.http.middleware import BodyReader, Overflow, Recorder
from calm_graph.http.playground import playground_routes
from calm_graph.http.service import Service
from calm_graph.http.settings import HttpSettings
from calm_graph.http.tokens import token_routes
from calm_graph.http.watching import watching_routes


def make_app(client: EngineClient, settings: HttpSettings | None = None) -> FastAPI:
    """Return the app.

    Args:
        client: Answers.
        settings: Limits and keys; None takes the defaults.

    Returns:
        An ASGI app for any server; with its own metrics, so that several may live in one process.

    Raises:
        DeclarationError: The API keys cannot be read.
    """
    settings = settings or HttpSettings()
    keys = read_keys(settings)
    metrics = Metrics(next(iter(client.models), ""))
    service = Service(client=client, settings=settings, metrics=metrics)
    app = FastAPI(
        title="calm_graph",
        version=version("calm-graph"),
        redoc_url=None,
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    for routes in (completion_routes, chat_routes, token_routes, watching_routes):
        app.include_router(routes(service))
    app.include_router(playground_routes())
    add_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(BodyReader, max_body_bytes=settings.max_body_bytes, timeout_s=settings.request_timeout_s)
    app.add_middleware(Overflow, client=client)
    app.add_middleware(Doorkeeper, keys=keys, max_requests_per_key=settings.max_requests_per_key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "x-request-id"],
            expose_headers=["x-request-id", "Retry-After"],
        )
    app.add_middleware(Recorder, metrics=metrics)
    _describe_errors(app)
    return app


def _describe_errors(app: FastAPI) -> None:
    """Take FastAPI's own validation error out of the OpenAPI schema: ours has another status and form."""
    schema: dict[str, Any] = app.openapi()
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(unused, None)
