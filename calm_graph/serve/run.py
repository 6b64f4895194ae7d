"""Serve until somebody stops it: on Ray Serve, or in this process alone."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import uvicorn

from calm_graph.errors import ServingError
from calm_graph.interrupts import handlers_kept, stop_on_signals

if TYPE_CHECKING:  # an augmenter's service may be without torch, and compositions are not
    from fastapi import FastAPI
    from ray.serve import Application

    from calm_graph.serve.augmenter_settings import AugmenterSettings
    from calm_graph.serve.settings import ServeSettings

APPLICATION = "calm_graph"
_POLL_S = 0.2
# Our own access log says more.
_QUIET = {"log_level": "WARNING", "enable_access_log": False}

Say = Callable[[str], None]


def serve_here(settings: ServeSettings, *, host: str, port: int, on_ready: Say, on_draining: Say) -> None:
    """Serve from this process, without Ray, until Ctrl-C or SIGTERM; a second Ctrl-C does not wait.

    Args:
        settings: What is served; what concerns a cluster is not looked at.
        host: Address to listen at.
        port: 0 takes a free one.
        on_ready: Called with the server's address once it answers.
        on_draining: Called with it when it takes no more requests, and goes on with those under way.

    Raises:
        ServingError: The port is taken.
    """
    from calm_graph.http.app import make_app
    from calm_graph.serve.replica import load_client

    with ExitStack() as closing:

        def load() -> FastAPI:
            client = load_client(settings)
            closing.callback(client.close)
            return make_app(client, settings.http)

        _run_here(load, settings.drain_s, host=host, port=port, on_ready=on_ready, on_draining=on_draining)


def serve_augmenter_here(settings: AugmenterSettings, *, host: str, port: int, on_ready: Say, on_draining: Say) -> None:
    """Do the same for an augmenter; the arguments are those of `serve_here`."""
    from calm_graph.serve.augmenter_app import make_augmenter_app
    from calm_graph.serve.augmenter_model import load_augmenter

    def load() -> FastAPI:
        return make_augmenter_app(load_augmenter(settings), settings)

    _run_here(load, settings.drain_s, host=host, port=port, on_ready=on_ready, on_draining=on_draining)


def _run_here(
    load: Callable[[], FastAPI], drain_s: float, *, host: str, port: int, on_ready: Say, on_draining: Say
) -> None:
    with _listening(host, port) as listening:
        address = _address(host, listening.getsockname()[1])
        config = uvicorn.Config(
            load(), log_config=None, access_log=False, timeout_graceful_shutdown=max(1, int(drain_s))
        )
        _Server(config, lambda: on_ready(address), lambda: on_draining(address)).run(sockets=[listening])


def serve_on_ray(settings: ServeSettings, *, host: str, port: int, on_ready: Say, on_draining: Say) -> None:
    """Deploy on the cluster that RAY_ADDRESS names, or on one of this machine, until Ctrl-C or SIGTERM.

    Args:
        settings: What is deployed.
        host: Address to listen at.
        port: Of HTTP.
        on_ready: Called with the server's address once it answers.
        on_draining: Called with it when it takes no more requests, and goes on with those under way.

    Raises:
        DeclarationError: A checkpoint, a name or the keys are wrong; all of it is listed.
        ServingError: The port is taken, or the engines did not start.
    """
    from calm_graph.serve.checks import check_settings

    check_settings(settings)  # before Ray and torch, which take seconds, are imported
    from calm_graph.serve.ray_app import build_app

    application = build_app(settings)
    _run_on_ray(application, APPLICATION, "/", host=host, port=port, on_ready=on_ready, on_draining=on_draining)


def serve_augmenter_on_ray(
    settings: AugmenterSettings, *, host: str, port: int, on_ready: Say, on_draining: Say
) -> None:
    """Do the same for an augmenter, at /augmenters/NAME; the arguments are those of `serve_on_ray`."""
    from calm_graph.serve.augmenter_ray import build_augmenter

    name = f"augmenter-{settings.name}"
    prefix = f"/augmenters/{settings.name}"
    application = build_augmenter(settings)
    _run_on_ray(application, name, prefix, host=host, port=port, on_ready=on_ready, on_draining=on_draining)


def _run_on_ray(
    application: Application, name: str, prefix: str, *, host: str, port: int, on_ready: Say, on_draining: Say
) -> None:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    with _listening(host, port):  # Ray would go on without a server
        pass
    owns_cluster = "RAY_ADDRESS" not in os.environ and not ray.is_initialized()
    with handlers_kept(signal.SIGINT, signal.SIGTERM):  # Ray takes them for itself
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if owns_cluster:
            ray.init(
                address="local",
                include_dashboard=False,
                configure_logging=False,
                log_to_driver=False,
                _system_config={"worker_niceness": 0},  # else engines come after everything else on the machine
            )
        address = _address(host, port) + prefix.rstrip("/")
        try:
            with stop_on_signals() as stop:
                serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=_QUIET)
                serve.run(application, name=name, route_prefix=prefix, blocking=False)
                on_ready(address)
                while not stop.requested:
                    time.sleep(_POLL_S)
                on_draining(address)
                serve.delete(name)
        except RuntimeError as error:  # what Serve raises when a deployment does not come up
            raise ServingError(f"{name} did not start: {_cause(name) or error}") from error
        finally:
            if owns_cluster:  # else others may be served on it
                # Ray prints that the controller, which it has just killed, is dead.
                with redirect_stdout(io.StringIO()):
                    serve.shutdown()
                    ray.shutdown()


class _Server(uvicorn.Server):
    """Says when it is ready and when it drains, and leaves signal handlers as they were."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_draining: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_draining = on_ready, on_draining

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and answer those under way."""
        self._on_draining()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first signal; uvicorn's own would raise it again afterwards."""
        with handlers_kept(signal.SIGINT, signal.SIGTERM) as numbers:
            for number in numbers:
                signal.signal(number, self.handle_exit)
            yield


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a port is a number of 0..65535"
            raise ServingError(f"{host}:{port}: {reason}; choose another address or port") from error
        yield listening


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _cause(name: str) -> str:
    """The last line of what a replica of an application failed with, where Serve's own error only names it."""
    from ray import serve

    for application, status in serve.status().applications.items():
        for deployment in status.deployments.values() if application == name else ():
            lines: list[str] = [line.strip() for line in deployment.message.splitlines() if line.strip()]
            told = [line for line in lines if re.match(r"(calm_graph|registry)\.[\w.]+Error: ", line)]
            if told:
                return told[-1].partition(": ")[2]
    return ""
