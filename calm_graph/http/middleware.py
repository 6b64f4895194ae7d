"""What surrounds every request: an id, a record, a limit on the body, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import re
import uuid

from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calm_graph.http.client import EngineClient
from calm_graph.http.errors import CLIENT_GONE, ApiError, as_api_error
from calm_graph.http.logs import log_request
from calm_graph.http.metrics import Metrics
from calm_graph.http.record import RequestRecord

ASKING_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Where tokens are asked for."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # what is safe in a header and a log


class Recorder:
    """Middleware, the outermost: names each request, records what becomes of it, and answers errors of any kind.

    Args:
        app: What answers.
        metrics: Count every request that has ended.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        came = Headers(scope=scope).get("x-request-id", "")
        request_id = came if _REQUEST_ID.fullmatch(came) else uuid.uuid4().hex
        record = RequestRecord(request_id=request_id, method=scope["method"], path=scope["path"])
        scope["calm_graph.record"] = record

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except asyncio.CancelledError:
            record.status, record.error_code = CLIENT_GONE, "client_gone"
            raise
        except Exception as error:
            answer = as_api_error(error, request_id=request_id)
            started = record.status != 0
            record.status, record.error_code = answer.status, answer.code
            if started:
                raise  # the server cuts the connection: a half answer must not look whole
            await answer.response()(scope, receive, send_named)
        finally:
            record.endpoint = getattr(scope.get("route"), "path", record.endpoint)
            self._metrics.ended(record)
            log_request(record)


class Overflow:
    """Middleware: while there is no room, refuses what asks for tokens before its body is read.

    A refusal then takes little from the answers under way, however many come.

    Args:
        app: What answers.
        client: Knows whether there is room.
    """

    def __init__(self, app: ASGIApp, *, client: EngineClient) -> None:
        self._app = app
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        refusal = None
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            refusal = self._client.refusal() if path in ASKING_PATHS else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["calm_graph.record"]
        error = as_api_error(refusal, request_id=record.request_id)
        record.endpoint, record.error_code = path, error.code
        await error.response()(scope, receive, send)


class BodyReader:
    """Middleware: reads the body, and refuses one that is too large as soon as it is, or whose text is no Unicode.

    Args:
        app: What answers.
        max_body_bytes: Most bytes of a body.
        timeout_s: Longest time until the whole body has come.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
            _check_text(body)
        except (ApiError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                error = ApiError(408, f"the body did not come within {self._timeout_s:g} s", code="request_timeout")
            scope["calm_graph.record"].error_code = error.code
            await error.response()(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, receive_again, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body."""
        limit = self._max_body_bytes
        too_large = ApiError(413, f"body: at most {limit} bytes are allowed", code="request_too_large")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(CLIENT_GONE, "the client is gone", code="client_gone")
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


def _check_text(body: bytes) -> None:
    """Refuse what is no UTF-8, and halves of surrogate pairs: Python takes them for JSON, but no tokenizer does."""
    try:
        body.decode()
        # Zeros that early are what Python's JSON takes for UTF-16 or UTF-32.
        if b"\0" in body[:4] or re.search(rb"\\u[dD][89a-fA-F]", body):
            from_json(body, cache_strings="none")
    except ValueError as error:
        raise ApiError(400, f"body: is not valid JSON: {error}", code="invalid_json") from None
