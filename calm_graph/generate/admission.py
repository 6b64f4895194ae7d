"""What requests may ask, and which augmenters each of them wakes."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import torch

from calm_graph.errors import InputError
from calm_graph.generate.batch import Group
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.requests import GenerationRequest
from calm_graph.generate.selector import Prompt, Selector, chosen
from calm_graph.model.composed import ComposedModel
from calm_graph.model.inputs import check_ids
from calm_graph.model.token_bytes import TokenBytes


class Admission:
    """Knows the compositions of an engine.

    Args:
        models: By the name that requests use; they share an anchor.
        settings: Of the engine.
        selectors: Name of a composition -> what chooses among its augmenters.
        table: Bytes of the anchor's tokens.

    Raises:
        InputError: Two models have different anchors.
    """

    def __init__(
        self,
        models: Mapping[str, ComposedModel],
        *,
        settings: EngineSettings,
        selectors: Mapping[str, Selector],
        table: TokenBytes,
    ) -> None:
        self.models, self.settings = models, settings
        self._selectors, self._bytes = selectors, table
        first = next(iter(models.values()))
        for name, model in models.items():
            if model.plan.anchor.card != first.plan.anchor.card:
                raise InputError(
                    f"models[{name!r}]: its anchor is {model.plan.anchor.name!r}, but an engine has one for all, here "
                    f"{first.plan.anchor.name!r}; serve it by an engine of its own"
                )
        self.anchor_name = first.plan.anchor.name
        self.context_length = first.plan.anchor.card.context_length or 2**31
        self._vocab_size: int = first.config.get_text_config(decoder=True).vocab_size
        self._device = first.device

    def check(self, request: GenerationRequest) -> None:
        """Refuse what can never be answered.

        Raises:
            InputError: Naming the field, what came and what is allowed.
        """
        known = [*self.models, self.anchor_name]
        if request.composition not in known:
            nearest = get_close_matches(request.composition, known, n=2) or known
            raise InputError(f"composition: got {request.composition!r}, but there is {', '.join(nearest)}")
        if not request.prompt_ids:
            raise InputError("prompt: got no token; give at least one")
        ids = torch.tensor([[*request.prompt_ids, *request.resume_ids]])
        check_ids(ids, self._vocab_size)
        room = self.context_length - len(request.prompt_ids)
        if room < min(1, request.sampling.max_new_tokens):
            raise InputError(
                f"prompt: got {len(request.prompt_ids)} tokens, but the anchor's context is {self.context_length}; "
                "shorten it"
            )
        if not 1 <= request.num_choices <= self.settings.max_running:
            raise InputError(f"num_choices: got {request.num_choices}, allowed are 1..{self.settings.max_running}")
        if request.resume_ids and request.num_choices > 1:
            raise InputError("resume_ids: they belong to one answer, so num_choices must be 1")
        if bad := [id for id in request.sampling.logit_bias if not 0 <= id < self._vocab_size]:
            raise InputError(f"logit_bias: got token {bad[0]}, but the vocabulary has ids 0..{self._vocab_size - 1}")
        if self.width(request) * request.num_choices > self.settings.max_cache_tokens:
            raise InputError(
                f"prompt: {self.width(request)} tokens with the answer, {request.num_choices} times, are more than "
                f"the {self.settings.max_cache_tokens} that are kept in all; ask for fewer tokens or choices"
            )
        scales = self._scales(request)
        if request.sampling.prompt_logprobs is not None:
            self._check_scored(request.composition, scales)

    def _check_scored(self, composition: str, scales: Mapping[str, float]) -> None:
        """Refuse to score a prompt where an augmenter's every state knows all of it: each word would be told before."""
        for run in self.models[composition].plan if scales else ():
            if run.card.causal is False and scales.get(run.name):
                raise InputError(
                    f"prompt_logprobs: augmenter {run.name!r} reads the prompt as a whole, so the anchor would know "
                    f"each word before it is predicted; ask without it: augmenters={{{run.name!r}: 0}}"
                )

    def opens_prompt(self, request: GenerationRequest) -> bool:
        """Whether an augmenter that may be on shows the anchor words of the prompt before it has read them."""
        scales = self._scales(request)
        edges = self.models[request.composition].plan.edges if scales else ()
        return any(edge.prompt_visibility == "full" and scales[edge.source] != 0 for edge in edges)

    def _scales(self, request: GenerationRequest) -> dict[str, float]:
        """The factor of each augmenter; none for the anchor alone."""
        if request.composition not in self.models:
            if request.scales:
                raise InputError(f"augmenters: got {sorted(request.scales)}, but the anchor alone has none")
            return {}
        plan = self.models[request.composition].plan
        scales = {edge.source: edge.scale for edge in plan.edges}
        for name, scale in request.scales.items():
            if name not in scales:
                raise InputError(f"augmenters: got {name!r}, but the composition has {', '.join(sorted(scales))}")
            if not -1e4 <= scale <= 1e4:
                raise InputError(f"augmenters[{name!r}]: got {scale}, but a factor of -10000..10000 is allowed")
            scales[name] = float(scale)
        return scales

    def _chosen(self, request: GenerationRequest) -> dict[str, float]:
        """The factors with those that are not worth running at 0."""
        scales = self._scales(request)
        selector = self._selectors.get(request.composition)
        open_names = tuple(name for name, scale in scales.items() if scale != 0 and name not in request.scales)
        if selector is None or not open_names:
            return scales
        text = request.prompt_text
        if text is None:
            text = b"".join(self._bytes.text(request.prompt_ids)).decode(errors="replace")
        wanted = chosen(selector, Prompt(text=text, ids=request.prompt_ids, augmenters=open_names))
        return {name: 0.0 if name in open_names and name not in wanted else scale for name, scale in scales.items()}

    def width(self, request: GenerationRequest) -> int:
        """Tokens of each of its rows at the end."""
        return min(self.context_length, len(request.prompt_ids) + request.sampling.max_new_tokens)

    def group(self, request: GenerationRequest, *, closes_prompt: bool = False) -> Group | None:
        """Return the request's augmenters, with its prompt; None if none that reaches the anchor is on.

        Args:
            request: Checked.
            closes_prompt: As of `AugmenterGraph.new_request`.

        Raises:
            InputError: The prompt cannot be read, or the selector chose something else.
        """
        scales = self._chosen(request)
        if not scales:
            return None
        model = self.models[request.composition]
        graph = model.graph
        if not graph.edges.is_needed(scales):
            return None
        tokens = model.anchor_tokens(torch.tensor([request.prompt_ids], device=self._device), None)
        new = graph.new_request(keeps=True, closes_prompt=closes_prompt)
        with graph.edges.scaled(scales):
            graph.begin(
                new,
                tokens,
                prompt_lengths=torch.tensor([len(request.prompt_ids)]),
                prompt_texts=None if request.prompt_text is None else [request.prompt_text],
                inputs={},
            )
        return Group(graph, new, [scales])
