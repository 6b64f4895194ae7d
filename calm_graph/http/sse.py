"""Server-sent events: an answer piece by piece, its errors too, and nothing more once the client is gone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from calm_graph.http.disconnect import unless_gone
from calm_graph.http.errors import ApiError, as_api_error
from calm_graph.http.record import RequestRecord


class EventStream(Response):
    """A response of events `data: {...}`, ended by `data: [DONE]`, or by `data: {"error": ...}`.

    Args:
        events: JSON texts.
        close: Called when nothing more is sent, for whatever reason.
        record: Learns of errors: the status is sent already.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[str, None], *, close: Callable[[], Awaitable[None]], record: RequestRecord
    ) -> None:
        # Proxies must not collect the events (the second header is nginx's).
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await unless_gone(receive, self._send(send))
        except ApiError as error:
            self._record.status, self._record.error_code = error.status, error.code
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        """Send the events, and how they end."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last = "[DONE]"
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await _send_event(send, event)
            except Exception as error:
                answer = as_api_error(error, request_id=self._record.request_id)
                self._record.status, self._record.error_code = answer.status, answer.code
                last = answer.body()
        await _send_event(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
