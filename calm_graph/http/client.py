"""What HTTP needs of whatever answers: an engine in this process, or replicas somewhere on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from calm_graph.errors import OverloadedError
from calm_graph.generate.requests import GenerationRequest, Output


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A composition that can be asked, or the anchor alone.

    Args:
        name: What requests call it.
        anchor: Name of its anchor; its own name if it is the anchor alone.
        augmenters: Names of its augmenters; none if it is the anchor alone.
        context_length: Most tokens of prompt and answer together.
        created: Unix time of the checkpoint, in seconds.
        graph: Its declaration and plan, for people to look at; empty if it is the anchor alone.
    """

    name: str
    anchor: str
    augmenters: tuple[str, ...]
    context_length: int
    created: int
    graph: Mapping[str, Any]


class EngineClient(Protocol):
    """Answers requests."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What can be asked, by name; the default one first."""

    @property
    def tokenizer(self) -> Any:
        """The anchor's tokenizer, a transformers one."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Answer; closing the iterator cancels.

        Args:
            request: A prompt to go on from.

        Yields:
            The outputs, until each choice has had one with a finish reason.

        Raises:
            InputError: The request cannot be answered as it is; before the first output.
            OverloadedError: There is no room now; before the first output.
            ServingError: What answered is gone or failed.
        """

    def refusal(self) -> OverloadedError | None:
        """What any request would be refused with now, where that is known without asking; None: ask."""

    async def statistics(self) -> Mapping[str, Any]:
        """What the engine counts, as `EngineStatistics` has it."""

    async def is_ready(self) -> bool:
        """Whether a request would be answered now."""
