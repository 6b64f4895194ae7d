"""Services of pico augmenters on free ports of this machine, and what may go wrong with one, on demand."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from calm_graph.serve.augmenter_app import make_augmenter_app
from calm_graph.serve.augmenter_model import AugmenterModel
from calm_graph.serve.augmenter_settings import AugmenterSettings

Change = Callable[[int, bytes], tuple[int, bytes]]
"""(status, body) as it is -> as it is sent."""


@dataclass
class Trouble:
    """Middleware: what may go wrong with a service.

    Attributes:
        wait_s: Before states are answered.
        change: Of what is answered to /v1/states.
        asked_at_s: When each request of states came.
        bodies: Bytes of each answer.
    """

    app: ASGIApp | None = None
    wait_s: float = 0.0
    change: Change | None = None
    asked_at_s: list[float] = field(default_factory=list)
    bodies: list[int] = field(default_factory=list)

    @property
    def num_asked(self) -> int:
        return len(self.asked_at_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] != "http" or scope["path"] != "/v1/states":
            await self.app(scope, receive, send)
            return
        self.asked_at_s.append(time.monotonic())
        await asyncio.sleep(self.wait_s)
        sent: dict[str, Any] = {"body": b""}

        async def keep(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent["status"], sent["headers"] = message["status"], message["headers"]
            sent["body"] += message.get("body", b"")

        await self.app(scope, receive, keep)
        status, body = sent["status"], sent["body"]
        if self.change is not None:
            status, body = self.change(status, body)
        self.bodies.append(len(body))
        headers = [(name, value) for name, value in sent["headers"] if name != b"content-length"]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True)
class ServedAugmenter:
    url: str
    trouble: Trouble
    stop: Callable[[], None]


@contextmanager
def serving_augmenter(model: AugmenterModel, *, port: int = 0, **settings: Any) -> Iterator[ServedAugmenter]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    made = AugmenterSettings(name=model.facts.name, **settings)
    model = replace(model, facts=model.facts.model_copy(update={"max_tokens": made.max_tokens}))
    trouble = Trouble(app=make_augmenter_app(model, made))
    server = uvicorn.Server(uvicorn.Config(trouble, log_level="error", timeout_graceful_shutdown=1, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)

    def stop() -> None:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        listener.close()

    try:
        yield ServedAugmenter(f"http://127.0.0.1:{listener.getsockname()[1]}", trouble, stop)
    finally:
        stop()
