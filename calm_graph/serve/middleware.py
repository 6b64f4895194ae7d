"""What surrounds every request: an id, a record, a limit on the body, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import re
import uuid

from pydantic_core import from_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calm_graph.serve.errors import CLIENT_GONE, ApiError, as_api_error
from calm_graph.serve.logs import log_request
from calm_graph.serve.metrics import Metrics
from calm_graph.serve.record import RequestRecord

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
            record.endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.ended(record)
            log_request(record)


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
            _check_surrogates(body)
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


def _check_surrogates(body: bytes) -> None:
    """Refuse halves of surrogate pairs, which Python's JSON accepts but no tokenizer, log or answer can hold."""
    if re.search(rb"\\u[dD][89a-fA-F]", body):
        try:
            from_json(body, cache_strings="none")
        except ValueError as error:
            raise ApiError(400, f"body: is not valid JSON: {error}", code="invalid_json") from None
