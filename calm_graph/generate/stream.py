"""Generate text for one prompt and hand each piece over as soon as it is final."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from calm_graph.errors import InputError
from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.requests import GenerationRequest, TokenOutput
from calm_graph.generate.sampling import Sampling
from calm_graph.generate.selector import Selector
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import prompt_ids

Stopped = Literal["end", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Args:
        text: Without special tokens.
        num_prompt_tokens: What the anchor read.
        num_new_tokens: What it wrote, the end token included.
        stopped: `end` of the answer, `length` (no more tokens were allowed) or `interrupted` by Ctrl-C.
        seconds: From the call to the last token.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    stopped: Stopped
    seconds: float


def stream_text(
    model: ComposedModel,
    prompt: str,
    *,
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] | None = None,
    prompt_text: str | None = None,
    rendered: bool = False,
    scales: Mapping[str, float] | None = None,
    selector: Selector | None = None,
) -> Generation:
    """Continue a prompt.

    Ctrl-C ends the answer, not the program: what was written until then is returned.

    Args:
        model: A composed model, in eval mode.
        prompt: What the anchor reads.
        sampling: How tokens are chosen; None takes the likeliest ones.
        on_text: Called with each piece of text; None hears nothing before the end.
        prompt_text: What the augmenters read; None is the prompt.
        rendered: Whether a chat template wrote the prompt, with its special tokens.
        scales: Augmenter name -> factor on what it contributes; others keep the composition's.
        selector: Chooses among the augmenters that `scales` does not name; None: all of them run.

    Returns:
        The answer.

    Raises:
        InputError: The prompt is empty, or leaves no room in the anchor's context.
    """
    sampling = sampling or Sampling()
    ids = prompt_ids(model.tokenizer, prompt, rendered=rendered)
    if not prompt or not ids:
        raise InputError("prompt: got an empty text, but at least one token is needed")
    room = context_room(model, len(ids))
    if room < 1:
        raise InputError(f"prompt: got {len(ids)} tokens, but the anchor's context is {len(ids) + room}; shorten it")
    name = model.plan.composition.name
    request = GenerationRequest(
        id="stream",
        composition=name,
        prompt_ids=tuple(ids),
        prompt_text=prompt if prompt_text is None else prompt_text,
        sampling=sampling,
        scales=scales or {},
    )
    settings = EngineSettings(max_running=1, max_cache_tokens=len(ids) + sampling.max_new_tokens, prefix_tokens=0)
    began = time.perf_counter()
    engine = Engine({name: model}, settings, selectors={} if selector is None else {name: selector})
    pieces: list[str] = []
    num_new_tokens = 0
    stopped: Stopped = "interrupted"
    try:
        for output in _outputs(engine, request):
            num_new_tokens += output.token_id is not None
            if output.text:
                pieces.append(output.text)
                if on_text is not None:
                    on_text(output.text)
            if output.finish_reason is not None:
                stopped = "end" if output.finish_reason == "stop" else "length"
    except KeyboardInterrupt:
        pass  # an engine that nobody drives any more is dropped with all it holds
    return Generation(
        text="".join(pieces),
        num_prompt_tokens=len(ids),
        num_new_tokens=num_new_tokens,
        stopped=stopped,
        seconds=time.perf_counter() - began,
    )


def _outputs(engine: Engine, request: GenerationRequest) -> Iterator[TokenOutput]:
    engine.add(request)
    while engine.has_work:
        for _, output in engine.step():
            if isinstance(output, Exception):
                raise output
            if isinstance(output, TokenOutput):
                yield output


def context_room(model: ComposedModel, num_tokens: int) -> int:
    """Return how many tokens fit into the anchor's context after `num_tokens` of them."""
    context = model.plan.anchor.card.context_length
    return context - num_tokens if context is not None else 2**31
