"""Read and write the residual stream of a frozen model, block by block, with no state left on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Write = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCall:
    """What one forward of one frozen model should do after its blocks.

    Attributes:
        taps: Layers whose output is kept.
        writes: Layer -> function of the block's output, float [B, T, D], that returns what the next block reads.
        states: Layer -> the kept output, float [B, T, D]; filled during the call, after any write.
        positions: Rows and columns, int64 [K] each, of the positions that the head should see; None: all.
    """

    taps: frozenset[int] = frozenset()
    writes: Mapping[int, Write] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    positions: tuple[torch.Tensor, torch.Tensor] | None = None


# A context variable is private to a thread and is put back by `during`, so that two threads do not mix and a
# forward that raises leaves nothing behind. An attribute on the module would do neither.
_CALL: ContextVar[BlockCall | None] = ContextVar("calm_graph_block_call", default=None)
_RECOMPUTE: ContextVar[bool] = ContextVar("calm_graph_recompute", default=False)


def watch(blocks: nn.ModuleList) -> None:
    """Make every block of a frozen model obey the `BlockCall` in force; without one a block is untouched.

    Args:
        blocks: The model's blocks in order.
    """
    for layer, block in enumerate(blocks):
        block.register_forward_hook(partial(_after_block, layer))


def watch_head(head: nn.Module) -> None:
    """Make a model's head obey the `positions` of the `BlockCall` in force: it then returns logits float [1, K, V].

    Args:
        head: What turns final states, float [B, T, D], into logits.
    """
    head.register_forward_pre_hook(_before_head)


def make_recomputable(blocks: nn.ModuleList) -> None:
    """Make every block of a frozen model obey `recomputing`.

    Args:
        blocks: The model's blocks.
    """
    kinds = {type(block) for block in blocks}
    # A module around a block would change names, and another `forward` on it would break copies. A class does neither.
    recomputable = {kind: kind if hasattr(kind, "_recomputable") else _recomputable(kind) for kind in kinds}
    for block in blocks:
        block.__class__ = recomputable[type(block)]


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


def _recomputable(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = partial(kind.forward, self)
        if not (_RECOMPUTE.get() and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        # Nothing in a frozen block is random: it is in eval mode.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "_recomputable": True, "__module__": kind.__module__})


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
    return (states, *output[1:]) if isinstance(output, tuple) else states


def _before_head(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    call = _CALL.get()
    if call is None or call.positions is None:
        return None
    states_BTD, *others = args
    return (states_BTD[call.positions][None], *others)
