"""The augmenters of a plan at work: run what is new, and offer its states to the edges that read them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.ragged import RaggedCache
from calm_graph.augmenters.taps import Write
from calm_graph.errors import AugmenterUnavailableError, InputError
from calm_graph.model.alignment import Reader
from calm_graph.model.edges import Edges
from calm_graph.model.inputs import check_prompt
from calm_graph.model.request import Pending, Request
from calm_graph.model.scales import is_off
from calm_graph.model.stored import StoredStates
from calm_graph.model.timing import note_run, timed_run
from calm_graph.model.tokens import AnchorTokens, Tokens
from calm_graph.plan.parts import Plan, PlannedRun

AugmenterInputs = Mapping[str, Mapping[str, torch.Tensor]]


class AugmenterGraph(nn.Module):
    """The augmenters of a plan, and its edges.

    Args:
        plan: What runs, how deep, and what reads what.
        backends: Run name -> the augmenter; two runs of one model share a backend. Without any, all that augmenters say
            must come with each request.
        readers: Run name -> maker of its text reader; absent for augmenters with inputs of their own.
    """

    def __init__(
        self, plan: Plan, *, backends: Mapping[str, Backend], readers: Mapping[str, Callable[[], Reader]]
    ) -> None:
        super().__init__()
        self.plan = plan
        self.runs: tuple[PlannedRun, ...] = tuple(run for run in plan.runs if not run.is_anchor)
        self.backends = nn.ModuleDict({_backend_key(plan.run(name)): backend for name, backend in backends.items()})
        self.edges = Edges(plan)
        self._make_readers = dict(readers)
        self._differentiable = self._runs_with_gradients()

    def new_request(
        self, *, keeps: bool, stored: Mapping[str, StoredStates] | None = None, closes_prompt: bool = False
    ) -> Request:
        """A request with fresh readers.

        Args:
            keeps: Whether augmenters keep their keys and values for later calls.
            stored: Run name -> states that the anchor's attachments read; no augmenter runs then.
            closes_prompt: Whether every prompt is read as with `prompt_visibility="causal"`.

        Raises:
            InputError: The augmenters were not loaded, and there is nothing stored.
        """
        if stored is None and self.runs and not self.backends:
            raise InputError(
                "stored_states: none were given, but this model was built without its augmenters' weights; "
                "give them, or build the model with load_augmenters=True"
            )
        streams = [run.name for run in self.runs if run.name in self._make_readers and run.reading == "stream"]
        return Request(
            readers={name: make() for name, make in self._make_readers.items()},
            caches={name: RaggedCache() for name in streams} if keeps else {},
            stored=stored,
            closes_prompt=closes_prompt,
        )

    def place(self, devices: Mapping[str, torch.device]) -> None:
        """Move augmenters, and attachments to the model that they write into.

        Args:
            devices: Run name -> device.
        """
        for run in self.runs if self.backends else ():
            self.backend(run.name).to(devices[run.name])
        self.edges.place(devices)

    def begin(
        self,
        request: Request,
        tokens: AnchorTokens,
        *,
        prompt_lengths: torch.Tensor,
        prompt_texts: Sequence[str | None] | None,
        inputs: AugmenterInputs,
    ) -> None:
        """Read the sealed prompt; the augmenters run over it at the next `push`.

        Args:
            request: A fresh request.
            tokens: Anchor tokens that hold the whole prompt.
            prompt_lengths: int64 [B], real tokens of each row that are the prompt.
            prompt_texts: Row by row, the text to read as the prompt; None: the text of the prompt's tokens.
            inputs: Run name -> inputs of a model that reads something else than text.

        Raises:
            InputError: A prompt is not whole, a row is empty, or inputs are missing.
        """
        prompt_lengths = prompt_lengths.to(tokens.ids_BT.device)
        check_prompt(tokens, prompt_lengths, prompt_texts)
        self._check_inputs(inputs)
        if not bool(prompt_lengths.any()):
            self._warn_of_unread_prompts()
        prompt = tokens.where(tokens.index_BT < prompt_lengths[:, None])
        texts = prompt_texts if prompt_texts is not None else [None] * len(prompt_lengths)
        # Also of an augmenter that is off, because it may be switched on before the request ends.
        states = {}
        for name in inputs:
            if request.stored is None:
                states[name] = self._read_inputs(name, inputs[name], num_rows=len(prompt_lengths))
            elif name in request.stored:
                read = Tokens.always_known(request.stored[name].real(prompt_lengths.device))
                if (found := self._stored(request.stored, name, read)) is not None:
                    states[name] = read, found
        # Run with the first completion tokens, in one pass: without a cache a second pass would not know of the first.
        request.waiting = {name: reader.begin(prompt, texts) for name, reader in request.readers.items()}
        for name, (read, by_layer) in states.items():
            self.edges.offer(request, name, read, by_layer)
        # Last, so that a request that could not begin is still a fresh one.
        request.prompt_lengths_B = prompt_lengths
        request.last_index_B = prompt_lengths - 1

    def push(self, request: Request, tokens: AnchorTokens) -> dict[int, Write]:
        """Run the augmenters over what waits and the completion tokens among `tokens`, in the plan's order.

        Args:
            request: One that has begun.
            tokens: New anchor tokens.

        Returns:
            What the attachments then add to the anchor's stream over these tokens, by layer.

        Raises:
            InputError: An augmenter with inputs of its own is on, but the request began without them.
        """
        assert request.prompt_lengths_B is not None
        new = tokens.where(tokens.index_BT >= request.prompt_lengths_B[:, None])
        read = {name: reader.push(new) for name, reader in request.readers.items()}
        for name, (_, withdrawn_at_BR) in read.items():
            request.withdraw(name, withdrawn_at_BR)
        self._run(request, {name: known for name, (known, _) in read.items()})
        request.last_index_B = torch.maximum(request.prompt_lengths_B - 1, tokens.index_BT.max(dim=1).values)
        return self.edges.writes(self.plan.anchor.name, request, index_BT=tokens.index_BT)

    def start_reads(self, request: Request) -> None:
        """Ask the services of all augmenters that are on about the prompts that wait for them, together.

        Args:
            request: One that has begun.

        Raises:
            InputError: A prompt is longer than an augmenter's context.
        """
        if request.stored is not None:
            return
        needed = self.edges.needed_runs()
        for run in self.runs:
            tokens = request.waiting.get(run.name)
            if run.name not in needed or tokens is None or len(tokens) == 0:
                continue
            states = self.backend(run.name).start_tokens(tokens.ids_BS, tokens.real_BS, taps=frozenset(run.taps))
            if states is not None:
                request.pending[run.name] = Pending(tokens, states)
                del request.waiting[run.name]

    def take_reads(self, request: Request, *, wait: bool = False) -> None:
        """Offer the states that services have sent.

        Args:
            request: One whose prompts they were asked about.
            wait: Whether to wait for all of them.

        Raises:
            AugmenterError: A service refuses, or answers something else.
            AugmenterUnavailableError: It does not answer, and the composition cannot do without.
        """
        for name in [name for name, pending in request.pending.items() if wait or pending.states.done()]:
            pending = request.pending.pop(name)
            try:
                states = pending.states.result()
            except AugmenterUnavailableError as error:
                if not self._can_do_without(name, request):
                    raise
                warnings.warn(f"{error}; answered without it", stacklevel=2)
                request.skipped.add(name)
                continue
            note_run(name, pending.tokens, began=pending.began)
            self.edges.offer(request, name, pending.tokens, states)

    def read_ahead(self, request: Request, num_tokens: int) -> int:
        """Run one augmenter over at most so many of the tokens that wait, so that a long prompt can be read in pieces.

        What reads a service that has not answered yet waits for it.

        Args:
            request: One that has begun, and keeps.
            num_tokens: The most; an augmenter that must see its text whole takes all of it.

        Returns:
            Tokens that were run; 0 if nothing waits for an augmenter that is on.
        """
        needed = self.edges.needed_runs()
        held = set(request.pending)
        for run in self.runs:
            waiting = request.waiting.get(run.name)
            if any(edge.source in held for edge in self.plan.into(run.name)):
                held.add(run.name)
            if run.name not in needed or run.name in held or waiting is None or len(waiting) == 0:
                continue
            whole = run.card.causal is False or (run.card.onnx is not None and run.card.onnx.reading == "prompt")
            first, rest = waiting.split(len(waiting) if whole else num_tokens)
            if len(rest):
                # Also of a prompt that is read once, until it is read.
                request.caches.setdefault(run.name, RaggedCache())
            self._read(request, run, first)
            request.waiting[run.name] = rest
            if not len(rest):
                del request.waiting[run.name]
                if run.reading == "prompt":
                    request.caches.pop(run.name, None)
            return len(first)
        return 0

    def _run(self, request: Request, new: Mapping[str, Tokens]) -> None:
        needed = self.edges.needed_runs()
        self.start_reads(request)
        self.take_reads(request, wait=True)
        offered = {source for source, _ in request.contexts}.union(request.kept or ())
        for run in self.runs:
            if run.name not in new:
                if run.name in needed and run.name not in offered:
                    raise InputError(
                        f"augmenter_inputs: {run.name!r} is on, but its request began without its inputs; begin another"
                    )
                continue
            tokens = new[run.name]
            if run.name in request.waiting:
                tokens = request.waiting.pop(run.name).then(tokens)
            if len(tokens) == 0:
                continue
            if run.name not in needed:
                request.waiting[run.name] = tokens
                continue
            self._read(request, run, tokens)

    def _read(self, request: Request, run: PlannedRun, tokens: Tokens) -> None:
        """Run an augmenter over tokens and offer its states."""
        if request.stored is not None:
            if (read := self._stored(request.stored, run.name, tokens)) is not None:
                self.edges.offer(request, run.name, tokens, read)
            return
        writes = self.edges.writes(run.name, request, clock_BT=tokens.known_at_BS, index_BT=tokens.index_BS)
        differentiable = torch.is_grad_enabled() and run.name in self._differentiable
        with timed_run(run.name, tokens), torch.set_grad_enabled(differentiable):
            states = self.backend(run.name).read_tokens(
                tokens.ids_BS,
                tokens.real_BS,
                known_at_BS=tokens.known_at_BS,
                taps=frozenset(run.taps),
                writes=writes,
                cache=request.caches.get(run.name),
                withdrawn_at_BS=tokens.withdrawn_at_BS if run.open_words == "read" else None,
            )
        self.edges.offer(request, run.name, tokens, states)

    def _read_inputs(
        self, name: str, inputs: Mapping[str, torch.Tensor], *, num_rows: int
    ) -> tuple[Tokens, dict[int, torch.Tensor]]:
        run = self.plan.run(name)
        with torch.no_grad():
            states = self.backend(name).read(inputs, taps=frozenset(run.taps), writes={})
        shape, device = next(iter(states.values())).shape[:2], next(iter(states.values())).device
        if shape[0] != num_rows:
            raise InputError(f"augmenter_inputs[{name!r}]: got {shape[0]} rows, but input_ids has {num_rows}")
        mask = inputs.get("attention_mask")
        real_BS = torch.ones(shape, dtype=torch.bool, device=device)
        if mask is not None and mask.shape == shape:  # speech models return fewer states than their mask has places
            real_BS = mask.bool().to(device)
        return Tokens.always_known(real_BS), states

    def _stored(self, stored: Mapping[str, StoredStates], name: str, tokens: Tokens) -> dict[int, torch.Tensor] | None:
        """The stored states of the layers that the anchor reads of a run; None if only other augmenters read it."""
        edges = [edge for edge in self.plan.out_of(name) if edge.target == self.plan.anchor.name]
        layers = {p.augmenter_layer for edge in edges if not is_off(self.edges.scale(edge)) for p in edge.attachments}
        if not layers:
            return None
        if name not in stored:
            raise InputError(
                f"stored_states: got {sorted(stored)}, but {name!r} is on; give its states or switch it off"
            )
        return stored[name].padded(tokens.real_BS, layers=layers, name=name)

    def _can_do_without(self, name: str, request: Request) -> bool:
        """Whether everything that reads a run may go on without it; training and stored states never do."""
        skips = all(edge.if_unavailable == "skip" for edge in self.plan.out_of(name))
        return skips and not self.training and request.kept is None

    def _warn_of_unread_prompts(self) -> None:
        prompted = [run.name for run in self.runs if run.reading == "prompt" and run.name in self._make_readers]
        idle = sorted(self.edges.needed_runs().intersection(prompted))
        if idle:
            warnings.warn(
                f"augmenters {idle} read the prompt only, and no row has one, so they add nothing; "
                "give prompt_lengths (or labels), or declare reading='stream'",
                stacklevel=2,
            )

    def _check_inputs(self, given: AugmenterInputs) -> None:
        expected = {run.name for run in self.runs if run.name not in self._make_readers}
        if set(given) - expected or (expected & self.edges.needed_runs()) - set(given):
            raise InputError(
                f"augmenter_inputs: got {sorted(given)}, but the augmenters with inputs of their own are "
                f"{sorted(expected)}; give each a mapping such as {{'pixel_values': tensor}}, or switch it off"
            )

    def _runs_with_gradients(self) -> frozenset[str]:
        """Runs that trained attachments write into, directly or further up."""
        found: set[str] = set()
        for run in self.plan.runs:
            edges = self.plan.into(run.name)
            if any(edge.source in found or any(planned.trainable for planned in edge.attachments) for edge in edges):
                found.add(run.name)
        return frozenset(found)

    def backend(self, name: str) -> Backend:
        """What runs the run of this name."""
        backend = self.backends[_backend_key(self.plan.run(name))]
        assert isinstance(backend, Backend)
        return backend


def _backend_key(run: PlannedRun) -> str:
    """The run's name, made unlike any method of `ModuleDict`, which refuses those: a model may be called `keys`."""
    return f"run:{run.module_key}"
