"""Read and write the residual stream of a frozen model, block by block, with no state left on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Write = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where one forward starts, instead of at the first block.

    Attributes:
        layer: The last block that does not run.
        states: float [B, T, D], what it would have returned.
        in_tuple: Whether the architecture's blocks return tuples.
    """

    layer: int
    states: torch.Tensor
    in_tuple: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCall:
    """What one forward of one frozen model should do after its blocks.

    Attributes:
        taps: Layers whose output is kept.
        writes: Layer -> function of the block's output, float [B, T, D], that returns what the next block reads.
        states: Layer -> the kept output, float [B, T, D]; filled during the call, after any write.
        start: Where to start; None: at the first block.
        positions: Rows and columns, int64 [K] each, of the positions that the head should see; None: all.
    """

    taps: frozenset[int] = frozenset()
    writes: Mapping[int, Write] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    start: Start | None = None
    positions: tuple[torch.Tensor, torch.Tensor] | None = None


# A context variable is private to a thread and is put back by `during`, so that two threads do not mix and a
# forward that raises leaves nothing behind. An attribute on the module would do neither.
_CALL: ContextVar[BlockCall | None] = ContextVar("calm_graph_block_call", default=None)
_LAST: ContextVar[int | None] = ContextVar("calm_graph_last_block", default=None)
_RECOMPUTE: ContextVar[bool] = ContextVar("calm_graph_recompute", default=False)


def watch(blocks: nn.ModuleList) -> None:
    """Make every block of a frozen model obey the `BlockCall` in force and `recomputing`; else it is untouched.

    Args:
        blocks: The model's blocks in order.
    """
    for layer, block in enumerate(blocks):
        # Of a class of its own: no hook can keep a block from running, a module around it would change names, and
        # another `forward` on it would break copies.
        if isinstance(block, _Watched):  # a model that several compositions share
            continue
        block.__class__ = _watched(type(block))  # type: ignore[arg-type]
        vars(block)["layer_of_model"] = layer
        block.register_forward_hook(partial(_after_block, layer))


def watch_head(head: nn.Module) -> None:
    """Make a model's head obey the `positions` of the `BlockCall` in force: it then returns logits float [1, K, V].

    Args:
        head: What turns final states, float [B, T, D], into logits.
    """
    if _before_head not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_before_head)


@contextmanager
def recomputing(enabled: bool) -> Iterator[None]:
    """Keep only the inputs of blocks in the forwards inside the `with`; the backward runs each block again.

    What is written after a block is kept, because that happens outside of the block. Not for calls with a cache, which
    the second run would fill again.

    Args:
        enabled: False changes nothing.

    Yields:
        Nothing.
    """
    token = _RECOMPUTE.set(enabled)
    try:
        yield
    finally:
        _RECOMPUTE.reset(token)


@contextmanager
def during(call: BlockCall) -> Iterator[BlockCall]:
    """Put `call` in force for the forward inside the `with`."""
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


class _Reached(Exception):  # noqa: N818  # no error: the way out of a forward that has gone far enough
    """The last block that is wanted has run."""


@contextmanager
def up_to(layer: int, call: BlockCall) -> Iterator[None]:
    """Put `call` in force for a forward inside the `with` that ends, without a result, after a block.

    Args:
        layer: The block; what is wanted of it is in `call.states`.
        call: With that layer among its taps.

    Yields:
        Nothing.
    """
    token = _LAST.set(layer)
    try:
        with during(call):
            yield
    except _Reached:
        pass
    finally:
        _LAST.reset(token)


class _Watched:
    """Marks the classes that `_watched` makes."""


@cache
def _watched(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get()
        if call is not None and call.start is not None and vars(self)["layer_of_model"] <= call.start.layer:
            return (call.start.states, None) if call.start.in_tuple else call.start.states
        run = partial(kind.forward, self)
        if not (_RECOMPUTE.get() and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        # Nothing in a frozen block is random: it is in eval mode.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return type(kind.__name__, (kind, _Watched), {"forward": forward, "__module__": kind.__module__})


def _after_block(layer: int, block: nn.Module, args: Any, output: Any) -> Any:
    call = _CALL.get()
    if call is None:
        return None
    write = call.writes.get(layer)
    if write is None and layer not in call.taps:
        return None
    # Most blocks of transformers 5 return a tensor; Bloom's and some encoders' still return a tuple.
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    if write is not None:
        states = write(states)
    if layer in call.taps:
        call.states[layer] = states
    if _LAST.get() == layer:
        raise _Reached
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _before_head(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    call = _CALL.get()
    if call is None or call.positions is None:
        return None
    states_BTD, *others = args
    return (states_BTD[call.positions][None], *others)
