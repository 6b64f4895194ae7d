"""Answers from replicas on a cluster; what a lost one had begun, another goes on with."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from calm_graph.errors import CalmGraphError, OverloadedError, ServingError
from calm_graph.generate.requests import GenerationRequest, Output, PromptOutput, TokenOutput
from calm_graph.generate.sampler import choice_seed
from calm_graph.generate.statistics import EngineStatistics, added
from calm_graph.http.client import ServedModel

_MAX_LOSSES = 10
"""Replicas that one request may lose; each loss waits longer before the next try."""
_ASK_S = 5.0
_LOST = (RayActorError, DeploymentUnavailableError)


class RayClient:
    """An `EngineClient` over the handle of a deployment of `EngineReplica`.

    Args:
        handle: Of the deployment.
        models: What `describe` says.
        tokenizer: The anchor's.
    """

    def __init__(self, handle: DeploymentHandle[Any], models: Mapping[str, ServedModel], tokenizer: Any) -> None:
        self._handle, self._models, self._tokenizer = handle, models, tokenizer

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What can be asked, by name."""
        return self._models

    @property
    def tokenizer(self) -> Any:
        """The anchor's tokenizer."""
        return self._tokenizer

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """See `EngineClient.generate`."""
        if request.sampling.seed is None:  # so that another replica draws the same
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        progress = _Progress(request)
        for loss in range(_MAX_LOSSES):
            try:
                for rest, choice in progress.rest():
                    async for output in self._ask(rest):
                        if progress.note(output, choice) is not None:
                            yield progress.noted
                return
            except _LOST:
                # Ray learns of a dead replica a moment after we do.
                await asyncio.sleep(min(2.0, 0.05 * 2**loss))
        raise ServingError(f"request {request.id!r}: lost {_MAX_LOSSES} replicas one after the other; try again later")

    async def _ask(self, request: GenerationRequest) -> AsyncIterator[Output]:
        responses = self._handle.options(stream=True).generate.remote(request)
        try:
            async for outputs in responses:
                for output in outputs:
                    yield output
        except RayTaskError as error:
            # Ray wraps what a replica raises, with its traceback in the message.
            if isinstance(error.cause, CalmGraphError):
                raise error.cause from None
            raise ServingError("a replica failed; the request was not at fault") from error
        except BackPressureError as error:
            raise OverloadedError("all replicas are busy, and no more requests may wait", retry_after_s=1.0) from error
        finally:
            responses.cancel()  # nothing, if it has ended

    def refusal(self) -> OverloadedError | None:
        """None: which replicas have room is known where requests are routed, in Ray."""
        return None

    async def statistics(self) -> Mapping[str, Any]:
        """What the engines of all replicas count together."""
        try:
            found = await self._handle.broadcast("statistics").results_async(timeout_s=_ASK_S, return_exceptions=True)
        except DeploymentUnavailableError:  # none is running: the deployment has scaled to zero, or lost the last one
            found = []
        engines = [each for each in found if isinstance(each, Mapping)]
        return added([asdict(EngineStatistics()), *engines])

    async def is_ready(self) -> bool:
        """Whether a replica answers."""
        try:
            await asyncio.wait_for(self._handle.statistics.remote(), timeout=_ASK_S)
        except (TimeoutError, RayActorError, RayTaskError, DeploymentUnavailableError):
            return False
        return True


@dataclass(slots=True)
class _Progress:
    """How far a request has come, so that what is missing can be asked elsewhere."""

    request: GenerationRequest
    ids: dict[int, list[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    has_prompt: bool = False
    noted: Output = field(init=False)

    def rest(self) -> list[tuple[GenerationRequest, int | None]]:
        """What is yet to be asked, with the choice that each is about; the whole request is about all."""
        request = self.request
        fresh = replace(request, id=f"{request.id}-{uuid.uuid4().hex[:8]}")
        if not self.ids and not self.ended and not self.has_prompt:
            return [(fresh, None)]
        seed = request.sampling.seed
        assert seed is not None
        sampling = replace(request.sampling, prompt_logprobs=None) if self.has_prompt else request.sampling
        return [
            (
                replace(
                    fresh,
                    id=f"{fresh.id}-{choice}",
                    num_choices=1,
                    resume_ids=(*request.resume_ids, *self.ids.get(choice, ())),
                    sampling=replace(sampling, seed=choice_seed(seed, choice)),
                ),
                choice,
            )
            for choice in range(request.num_choices)
            if choice not in self.ended
        ]

    def note(self, output: Output, choice: int | None) -> Output | None:
        """Remember an output; None if it was there before."""
        if isinstance(output, PromptOutput):
            if self.has_prompt:
                return None
            self.has_prompt = True
            self.noted = output
            return output
        if choice is not None:
            output = replace(output, choice=choice)
        self._add(output)
        self.noted = output
        return output

    def _add(self, output: TokenOutput) -> None:
        if output.token_id is not None:
            self.ids.setdefault(output.choice, []).append(output.token_id)
        if output.finish_reason is not None:
            self.ended.add(output.choice)
