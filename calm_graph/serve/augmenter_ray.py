"""An augmenter's service on Ray Serve: each replica has the model and speaks HTTP.

The `args:` of a `serve deploy` file with `import_path: calm_graph.serve.augmenter_ray:build_augmenter` and Python fill
in the same settings.
"""

from __future__ import annotations

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from calm_graph.serve.augmenter_app import make_augmenter_app
from calm_graph.serve.augmenter_model import load_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings


@serve.ingress()
class AugmenterReplica:
    """Loads the model and answers.

    Args:
        settings: Of the service.
    """

    def __init__(self, settings: AugmenterSettings) -> None:
        self._app = make_augmenter_app(load_augmenter(settings), settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, now that the model is there."""
        return self._app


def build_augmenter(settings: AugmenterSettings) -> Application:
    """Build the Ray Serve application.

    Args:
        settings: What is deployed.

    Returns:
        For `serve.run`, `serve run` or `serve deploy`; give each augmenter a route prefix of its own.
    """
    settings = settings.absolute()
    num_cpus = settings.num_cpus or 1
    return serve.deployment(
        AugmenterReplica,
        name=f"augmenter-{settings.name}",
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": settings.num_gpus, "resources": settings.resources},
        # It says itself when it is full.
        max_ongoing_requests=settings.max_waiting + 64,
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=2.0,
    ).bind(settings.model_copy(update={"num_cpus": num_cpus}))
