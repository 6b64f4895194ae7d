"""Requests that arrive together are run together."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry, Counter

from calm_graph.errors import OverloadedError, ServingError
from calm_graph.serve.augmenter_model import AugmenterModel

logger = logging.getLogger(__name__)

States = list[dict[int, np.ndarray]]


@dataclass(slots=True)
class _Asked:
    """One request: rows, layers, and where their states go."""

    rows: Sequence[Sequence[int]]
    layers: tuple[int, ...]
    states: asyncio.Future[States]


class Batcher:
    """Runs a model in a thread of its own, on as many requests as have come and fit.

    Args:
        model: Runs.
        max_batch_tokens: Of one run, padding included; a larger request runs alone.
        max_wait_s: A request waits so long for others.
        max_waiting: Requests that may wait; more are refused.
        metrics: Where it counts.
    """

    def __init__(
        self,
        model: AugmenterModel,
        *,
        max_batch_tokens: int,
        max_wait_s: float,
        max_waiting: int,
        metrics: CollectorRegistry,
    ) -> None:
        self._model = model
        self._max_batch_tokens, self._max_wait_s, self._max_waiting = max_batch_tokens, max_wait_s, max_waiting
        self._waiting: deque[_Asked] = deque()
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="augmenter")
        self._run_s = 1.0
        self._num_runs = Counter("calm_graph_augmenter_runs", "Runs of the model.", registry=metrics)
        self._num_requests = Counter("calm_graph_augmenter_requests", "Requests in them.", registry=metrics)
        self._num_tokens = Counter("calm_graph_augmenter_tokens", "Tokens in them.", registry=metrics)
        self._seconds = Counter("calm_graph_augmenter_run_seconds", "Seconds that they took.", registry=metrics)

    async def read(self, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> States:
        """Return the states of rows.

        Args:
            rows: Token ids, of the model's.
            layers: Of those that it gives.

        Returns:
            For each row, layer -> states, float [N, C].

        Raises:
            OverloadedError: Too many requests wait already.
            ServingError: The model failed.
        """
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(
                f"{len(self._waiting)} requests wait already, and no more may", retry_after_s=self._run_s
            )
        asked = _Asked(rows, tuple(layers), asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._came.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asked.states

    async def _work(self) -> None:
        """Run until nothing waits any more."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._gather()
            batch = self._take()
            if not batch:
                continue
            rows = [row for asked in batch for row in asked.rows]
            layers = sorted({layer for asked in batch for layer in asked.layers})
            began = loop.time()
            try:
                states = await loop.run_in_executor(self._thread, self._model.read, rows, layers)
            except Exception as error:
                for asked in batch:
                    if not asked.states.done():
                        asked.states.set_exception(ServingError(f"the model failed: {type(error).__name__}"))
                logger.error("the model failed", exc_info=error)
                continue
            self._run_s = loop.time() - began
            self._count(batch, rows)
            for asked in batch:
                own, states = states[: len(asked.rows)], states[len(asked.rows) :]
                if not asked.states.done():
                    asked.states.set_result([_only(row, asked.layers) for row in own])

    async def _gather(self) -> None:
        """Wait a little for others that come together with those that wait; not if they fill a batch."""
        deadline = asyncio.get_running_loop().time() + self._max_wait_s
        while self._size(self._waiting) < self._max_batch_tokens:
            self._came.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._came.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Asked]:
        """The requests that came first and fit together, without those that nobody waits for any more."""
        batch: list[_Asked] = []
        while self._waiting:
            if self._waiting[0].states.done():
                self._waiting.popleft()
            elif batch and self._size([*batch, self._waiting[0]]) > self._max_batch_tokens:
                break
            else:
                batch.append(self._waiting.popleft())
        return batch

    def _size(self, batch: Sequence[_Asked] | deque[_Asked]) -> int:
        """Tokens, padding included."""
        lengths = [len(row) for asked in batch for row in asked.rows]
        return len(lengths) * max(lengths, default=0)

    def _count(self, batch: Sequence[_Asked], rows: Sequence[Sequence[int]]) -> None:
        self._num_runs.inc()
        self._num_requests.inc(len(batch))
        self._num_tokens.inc(sum(map(len, rows)))
        self._seconds.inc(self._run_s)


def _only(states: Mapping[int, np.ndarray], layers: Sequence[int]) -> dict[int, np.ndarray]:
    return {layer: states[layer] for layer in layers}
