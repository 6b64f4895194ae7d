"""An engine that answers by script: what HTTP sees of a real one, with every edge case on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from calm_graph.errors import InputError, OverloadedError, ServingError
from calm_graph.generate.requests import GenerationRequest, Output, PromptOutput, TokenLogprob, TokenOutput
from calm_graph.generate.statistics import EngineStatistics
from calm_graph.http.client import ServedModel
from tests.model.pico import make_tokenizer

CONTEXT = 192
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if shout %}!{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
GARDEN = ServedModel(
    name="garden",
    anchor="arith",
    augmenters=("prices-garden", "prices-kitchen"),
    context_length=CONTEXT,
    created=1_700_000_000,
    graph={"nodes": ["arith", "prices-garden", "prices-kitchen"]},
)
ARITH = ServedModel(name="arith", anchor="arith", augmenters=(), context_length=CONTEXT, created=1, graph={})


@dataclass
class ScriptedClient:
    """Answers "0 1 2 ..." (then the prompt's length), one word a token; the prompt's text chooses what goes wrong.

    Prompts that contain `!refuse`, `!overload`, `!lost`, `!crash` fail before the first output; `!break` and `!half`
    (no finish reason) after three tokens; `!slow` takes 50 ms a token; `!hang` never answers.
    """

    requests: list[GenerationRequest] = field(default_factory=list)
    under_way: set[str] = field(default_factory=set)
    most_under_way: int = 0
    ready: bool = True
    has_room: bool = True
    has_template: bool = True

    def __post_init__(self) -> None:
        self._tokenizer = make_tokenizer("bytes")
        if self.has_template:
            self._tokenizer.chat_template = TEMPLATE

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return {"garden": GARDEN, "arith": ARITH}

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        assert request.id not in self.under_way
        self.requests.append(request)
        self.under_way.add(request.id)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        try:
            async for output in self._outputs(request):
                yield output
        finally:
            self.under_way.discard(request.id)

    async def _outputs(self, request: GenerationRequest) -> AsyncIterator[Output]:
        text = self._tokenizer.decode(list(request.prompt_ids))
        await asyncio.sleep(0)
        if "!refuse" in text:
            raise InputError("prompt: got something that the engine refuses")
        if "!overload" in text:
            raise OverloadedError("no room for another request", retry_after_s=2.2)
        if "!lost" in text:
            raise ServingError("the replica is gone")
        if "!crash" in text:
            raise RuntimeError("secret detail")
        if "!hang" in text:
            await asyncio.Event().wait()
        sampling = request.sampling
        if sampling.prompt_logprobs is not None:
            likeliest = [self._logged(id, sampling.prompt_logprobs) for id in request.prompt_ids]
            yield PromptOutput(logprobs=(None, *likeliest[1:]))
        for position in range(sampling.max_new_tokens):
            if "!slow" in text:
                await asyncio.sleep(0.05)
            if position == 3 and "!break" in text:
                raise ServingError("the replica is gone")
            if position == 3 and "!half" in text:
                return
            is_last = position == sampling.max_new_tokens - 1
            for choice in range(request.num_choices):
                word = "é" if "!accent" in text else str(position)
                # Half of a character has no text yet; the next token has all of it.
                held = "!accent" in text and position % 2 == 0 and not is_last
                yield TokenOutput(
                    choice=choice,
                    token_id=10 + position,
                    text="" if held else f"{word} ",
                    logprobs=() if sampling.logprobs is None else self._logged(10 + position, sampling.logprobs),
                    contributions={"prices-garden": position / 10} if request.contributions else None,
                    finish_reason="length" if is_last else None,
                )
            await asyncio.sleep(0)
        if sampling.max_new_tokens == 0:
            for choice in range(request.num_choices):
                yield TokenOutput(choice=choice, token_id=None, text="", finish_reason="length")

    def _logged(self, id: int, top: int) -> tuple[TokenLogprob, ...]:
        entries = [(id, -0.5), *((other, -1.0 - other) for other in range(20, 20 + top))]
        return tuple(
            TokenLogprob(token_id=each, text=self._tokenizer.decode([each]), logprob=logprob)
            for each, logprob in entries
        )

    def refusal(self) -> OverloadedError | None:
        return None if self.has_room else OverloadedError("no room for another request", retry_after_s=2.2)

    async def statistics(self) -> Mapping[str, Any]:
        if not self.ready:
            raise ServingError("the engine is gone")
        statistics = EngineStatistics(
            num_running=2,
            num_waiting=1,
            num_steps=10,
            num_decoded_rows=35,
            num_new_tokens=70,
            num_finished={"stop": 3},
            cache_tokens=50,
            cache_limit=200,
            augmenter_s={"prices-garden": 1.5},
            skipped_tokens={"prices-kitchen": 40},
            contribution={"prices-garden": 0.25},
        )
        return {name: getattr(statistics, name) for name in EngineStatistics.__slots__}

    async def is_ready(self) -> bool:
        return self.ready
