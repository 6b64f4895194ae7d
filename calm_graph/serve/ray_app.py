"""The Ray Serve application: processes that speak HTTP before replicas that compute.

The `args:` of a `serve deploy` file with `import_path: calm_graph.serve.ray_app:build_app` and Python fill in the same
settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from calm_graph.http.app import make_app
from calm_graph.serve.checks import check_settings
from calm_graph.serve.ray_client import RayClient
from calm_graph.serve.replica import EngineReplica
from calm_graph.serve.settings import ServeSettings

_ANY_NUMBER = 100_000
"""Requests in the processes before the engines: those say themselves when they are full."""


@serve.ingress()
class Ingress:
    """Takes requests over HTTP."""

    async def __init__(self, engine: DeploymentHandle[Any], settings: ServeSettings) -> None:  # type: ignore[misc]
        models, tokenizer = await engine.describe.remote()
        self._app = make_app(RayClient(engine, models, tokenizer), settings.http)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, now that the engines have said what they serve."""
        return self._app


def build_app(settings: ServeSettings | Mapping[str, Any]) -> Application:
    """Build the application.

    Args:
        settings: What is deployed; Ray hands over the `args:` of a file as they stand.

    Returns:
        For `serve.run`, `serve run` or `serve deploy`.

    Raises:
        DeclarationError: Settings are unknown or out of range, or no engine could start with them; all of it is listed.
    """
    settings = settings if isinstance(settings, ServeSettings) else ServeSettings.parse(settings, where="args")
    settings = settings.absolute()
    check_settings(settings)
    capacity = settings.engine.max_running + settings.engine.max_waiting
    scaling: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if settings.autoscaling is not None:
        defaults = {"target_ongoing_requests": settings.engine.max_running}
        scaling = {"autoscaling_config": AutoscalingConfig(**{**defaults, **settings.autoscaling})}
    engine = serve.deployment(
        EngineReplica,
        name="engine",
        ray_actor_options={
            "num_cpus": settings.num_cpus,
            "num_gpus": settings.num_gpus,
            "resources": settings.resources,
        },
        max_ongoing_requests=capacity,
        max_queued_requests=capacity,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=2.0,
        **scaling,
    ).bind(settings)
    return serve.deployment(
        Ingress,
        name="http",
        num_replicas=settings.num_http_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_ANY_NUMBER,
        graceful_shutdown_timeout_s=settings.drain_s,
    ).bind(engine, settings)
