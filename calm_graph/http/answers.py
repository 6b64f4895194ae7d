"""The outputs of the requests that one call makes, merged, within its time, and ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

from calm_graph.errors import ServingError
from calm_graph.generate.requests import GenerationRequest, Output, TokenOutput
from calm_graph.http.errors import ApiError
from calm_graph.http.metrics import Metrics
from calm_graph.http.record import RequestRecord
from calm_graph.http.service import Service

_AHEAD = 16  # outputs that may wait for a slow client; then the engine waits


class Answers:
    """An iterator over (index of the request, output), in the order they come.

    Args:
        service: Answers, within its settings' time.
        requests: All run together.
        record: Learns of each token.

    Attributes:
        record: As given.
        skipped: Augmenters that answers are made without, because their service does not answer.
    """

    def __init__(self, service: Service, requests: Sequence[GenerationRequest], record: RequestRecord) -> None:
        self._streams = [service.client.generate(request) for request in requests]
        self._timeout_s = service.settings.request_timeout_s
        self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        self._metrics: Metrics = service.metrics
        self.record = record
        self._first: tuple[int, Output] | None = None
        # (request, choice) -> when its newest token came; those that have ended are gone.
        self._open: dict[tuple[int, int], float | None] = {
            (index, choice): None for index, request in enumerate(requests) for choice in range(request.num_choices)
        }
        self._pumps: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, Output | Exception | None]] = asyncio.Queue(_AHEAD)
        self._num_streaming = len(requests)
        self.skipped: set[str] = set()

    async def peek(self) -> None:
        """Wait for the first output, so that an error can still become an HTTP status.

        Raises:
            ApiError: There was none in time; errors of the engine pass through.
        """
        self._first = await anext(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Output]:
        """Return the next output."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            async with asyncio.timeout_at(self._deadline):
                index, output = await self._next()
        except TimeoutError:
            message = f"the answer took longer than {self._timeout_s:g} s, the most this server allows"
            raise ApiError(408, message, code="request_timeout") from None
        self.skipped.update(output.skipped_augmenters)
        if isinstance(output, TokenOutput):
            self._note(index, output)
        return index, output

    async def aclose(self) -> None:
        """End everything that is still under way."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in self._streams:
            # The protocol asks only for an iterator; a generator is told, anything else ends by itself.
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()

    async def _next(self) -> tuple[int, Output]:
        """Return the next output of any stream."""
        if len(self._streams) == 1:
            try:
                return 0, await anext(self._streams[0])
            except StopAsyncIteration:
                self._check_ended()
                raise
        if not self._pumps:
            self._pumps = [asyncio.create_task(self._pump(*numbered)) for numbered in enumerate(self._streams)]
        while self._num_streaming:
            index, output = await self._queue.get()
            if isinstance(output, Exception):
                raise output
            if output is not None:
                return index, output
            self._num_streaming -= 1
        self._check_ended()
        raise StopAsyncIteration

    async def _pump(self, index: int, stream: AsyncIterator[Output]) -> None:
        """Carry a stream's outputs, then its error or None, to the queue."""
        try:
            async for output in stream:
                await self._queue.put((index, output))
        except Exception as error:
            await self._queue.put((index, error))
        else:
            await self._queue.put((index, None))

    def _note(self, index: int, output: TokenOutput) -> None:
        """Record a token and the end of an answer."""
        key = (index, output.choice)
        if output.token_id is not None:
            self._open[key] = self._metrics.token(self.record, since=self._open.get(key))
        if output.finish_reason == "cancelled":
            raise ServingError("the engine cancelled the answer; ask again")
        if output.finish_reason is not None:
            self.record.finish_reasons.append(output.finish_reason)
            self._open.pop(key, None)

    def _check_ended(self) -> None:
        """Refuse to show half an answer as a whole one."""
        if self._open:
            raise ServingError("the engine stopped before the answer ended; ask again")
