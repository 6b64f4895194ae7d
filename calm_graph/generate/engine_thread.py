"""An engine in a thread of its own, asked from asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from calm_graph.errors import OverloadedError, ServingError
from calm_graph.generate.engine import Engine
from calm_graph.generate.requests import GenerationRequest, Output, Result, TokenOutput
from calm_graph.generate.statistics import EngineStatistics

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Listener:
    """Where one request's outputs go."""

    loop: asyncio.AbstractEventLoop
    num_open: int
    queue: asyncio.Queue[Output | Exception] = field(default_factory=asyncio.Queue)

    def put(self, outputs: list[Output | Exception]) -> None:
        """Hand outputs over, from the engine's thread; one wake-up for all of a step."""
        try:
            self.loop.call_soon_threadsafe(self._put, outputs)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    def _put(self, outputs: list[Output | Exception]) -> None:
        for output in outputs:
            self.queue.put_nowait(output)


class EngineThread:
    """Drives an engine: steps while there is work, sleeps while there is none.

    Args:
        engine: From now on touched by the thread alone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._listeners: dict[str, _Listener] = {}
        self._added: list[GenerationRequest] = []
        self._cancelled: list[str] = []
        self._refusal: OverloadedError | None = None
        self._is_draining = self._is_ended = False
        self._thread = threading.Thread(target=self._run, name="calm-graph-engine", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._is_draining

    @property
    def refusal(self) -> OverloadedError | None:
        """What any request is refused with now; None: there is room."""
        if (refusal := self._refusal) is None:
            return None
        return OverloadedError(str(refusal), retry_after_s=refusal.retry_after_s)  # fresh: each is raised by itself

    def statistics(self) -> EngineStatistics:
        """What the engine counts."""
        return self._engine.statistics()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Answer a request; closing the iterator cancels it.

        Args:
            request: With an id that no other under way has.

        Yields:
            Outputs, until each choice has had one with a finish reason.

        Raises:
            InputError: It cannot be answered as it is.
            OverloadedError: Too many wait already.
            ServingError: The engine is shutting down, or failed.
        """
        async with aclosing(self.generate_together(request)) as together:
            async for outputs in together:
                for output in outputs:
                    yield output

    async def generate_together(self, request: GenerationRequest) -> AsyncGenerator[list[Output], None]:
        """Do the same, with all outputs that are there in one list: fewer messages, where each has its price."""
        listener = _Listener(asyncio.get_running_loop(), request.num_choices)
        with self._wake:
            if not self.is_ready:
                raise ServingError("the engine is shutting down")
            if request.id in self._listeners:
                raise ServingError(f"request {request.id!r} is under way already")
            if (refusal := self.refusal) is not None:
                # Here, not in the engine's thread: under overload that would cost the others the time of every refusal.
                raise refusal
            self._listeners[request.id] = listener
            self._added.append(request)
            self._wake.notify()
        try:
            while listener.num_open:
                found = [await listener.queue.get()]
                while not listener.queue.empty():
                    found.append(listener.queue.get_nowait())
                outputs = [output for output in found if not isinstance(output, Exception)]
                listener.num_open -= sum(
                    isinstance(output, TokenOutput) and output.finish_reason is not None for output in outputs
                )
                if outputs:
                    yield outputs
                for output in found:
                    if isinstance(output, Exception):
                        listener.num_open = 0  # it has ended: to cancel it would end the next request of this id
                        raise output
        finally:
            with self._wake:
                if self._listeners.pop(request.id, None) is not None and listener.num_open:
                    self._cancelled.append(request.id)
                self._wake.notify_all()

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more requests, go on with those under way for some time, and end.

        Args:
            drain_s: How long.
        """
        with self._wake:
            self._is_draining = True
            self._wake.wait_for(lambda: not self._listeners, timeout=drain_s)
            self._is_ended = True
            self._wake.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._added or self._cancelled or self._engine.has_work or self._is_ended)
                if self._is_ended:
                    self._deliver([(id, ServingError("the engine was shut down")) for id in self._listeners])
                    return
                added, self._added = self._added, []
                cancelled, self._cancelled = self._cancelled, []
            for id in cancelled:
                self._engine.cancel(id)
            results: list[Result] = []
            for request in added:
                try:
                    self._engine.add(request)
                except (ValueError, OverloadedError) as error:
                    results.append((request.id, error))
            self._deliver(results)  # who is refused need not wait for a step
            self._refusal = self._engine.refusal()
            try:
                results = self._engine.step()
            except Exception:
                # One request must not take the server down; all that were in the step are told.
                _log.exception("a step of the engine failed")
                results = self._engine.fail(ServingError("the engine failed; the request was not at fault"))
            self._refusal = self._engine.refusal()
            self._deliver(results)

    def _deliver(self, results: list[Result]) -> None:
        by_request: dict[str, list[Output | Exception]] = {}
        for id, output in results:
            by_request.setdefault(id, []).append(output)
        for id, outputs in by_request.items():
            listener = self._listeners.get(id)
            if listener is not None:
                listener.put(outputs)
