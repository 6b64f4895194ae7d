"""A real server on a free port of this machine, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2 as httpx
import pytest
import uvicorn
from openai import OpenAI

from calm_graph.http.app import make_app
from calm_graph.http.settings import HttpSettings
from tests.http.scripted import ScriptedClient

HTTP = httpx.Client(timeout=10)  # making one takes longer than most requests


@dataclass(frozen=True)
class Served:
    url: str
    client: ScriptedClient

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, path: str, body: object, **further: object) -> httpx.Response:
        return HTTP.post(f"{self.url}{path}", json=body, **further)  # type: ignore[arg-type]


@contextmanager
def serving(
    client: ScriptedClient | None = None, settings: HttpSettings | None = None, *, port: int = 0
) -> Iterator[Served]:
    client = client or ScriptedClient()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(make_app(client, settings), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield Served(url=f"http://127.0.0.1:{listener.getsockname()[1]}", client=client)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(shared_server: Served) -> Served:
    """A server without keys, which has nothing to do yet."""
    shared_server.client.requests.clear()
    shared_server.client.most_under_way = 0
    assert not shared_server.client.under_way
    return shared_server
