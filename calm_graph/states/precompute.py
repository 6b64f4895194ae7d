"""Compute the states of frozen models over rows once, so that training reads them instead of running the models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from calm_graph.data.columns import Columns
from calm_graph.data.load import load_dataset
from calm_graph.data.samples import Batch
from calm_graph.data.sources import Rows
from calm_graph.declare.composition import Composition
from calm_graph.declare.settings import LongRows
from calm_graph.errors import CalmGraphError, StatesError
from calm_graph.interrupts import stop_on_signals
from calm_graph.model.build import nested_checkpoints
from calm_graph.plan.graph import make_plan
from calm_graph.progress import Advance, Show, progress, say
from calm_graph.states.compute import StateComputer, TokenCounter
from calm_graph.states.estimate import Estimate, Shard, cut, estimate
from calm_graph.states.key import DTYPES, Dtype, can_start_late, key_of
from calm_graph.states.store import remove_scratch, shard_files, write_key
from registry import Registry
from registry import registry as default_registry
from registry.weights import load_tokenizer

_MEASURED = 3


def precompute(
    composition: Composition,
    /,
    *data: Rows,
    out: str | Path,
    columns: Columns | None = None,
    dtype: Dtype = "bf16",
    anchor: bool = True,
    max_length: int | None = None,
    long_rows: LongRows = "error",
    batch_size: int = 8,
    shard_bytes: int = 256_000_000,
    num_workers: int = 0,
    use_gpu: bool = False,
    device: str = "auto",
    dry_run: bool = False,
    registry: Registry | None = None,
    show: Show = "auto",
) -> Estimate:
    """Run each augmenter of a composition once over rows and keep the layers that attachments read.

    What is written already is not computed again, so an interrupted run goes on when it is called again.

    Args:
        composition: The declaration.
        data: The rows that training will use, held-out ones included.
        out: Folder of the cache.
        columns: Key of a row -> the column of the data that holds it, as in training.
        dtype: In which states are kept.
        anchor: Keep the anchor's states below its first attachment, too, so that training starts there.
        max_length: Tokens per sample, as training will have it; None takes the anchor's context.
        long_rows: What happens to longer rows, as in training.
        batch_size: Samples that run at once.
        shard_bytes: A shard is closed before it would be larger.
        num_workers: 0 computes in this process; more is a pool of so many Ray actors.
        use_gpu: Give each actor a GPU.
        device: Where the models run; `auto` takes a GPU when there is one.
        dry_run: Only count and measure.
        registry: Where names are looked up; None is the default registry.
        show: Progress as a bar on a terminal and lines elsewhere (`auto`), as lines (`plain`), or not at all (`none`).

    Returns:
        What was estimated beforehand.

    Raises:
        StatesError: States are not constant, not finite, or cannot be written; `out` holds the states of something
            else; or the Ray cluster is too small.
        KeyboardInterrupt: Ctrl-C; its message says how to go on.
    """
    if not data:
        raise StatesError("data: got none, but the rows that training will use are needed")
    if dtype not in DTYPES:
        raise StatesError(f"dtype: got {dtype!r}, but allowed are {', '.join(DTYPES)}")
    for name, number, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("max_length", max_length, 2),
    ):
        if number is not None and number < least:
            raise StatesError(f"{name}: got {number}, but at least {least} is needed")
    registry = default_registry if registry is None else registry
    plan = make_plan(composition, registry=registry)
    checkpoints = nested_checkpoints(plan, registry)
    layer = plan.first_attached_layer if anchor and can_start_late(plan) else None
    if anchor and layer is None:
        say(
            show, f"the states of anchor {plan.anchor.name!r} are not kept: its architecture is not in registry.layouts"
        )
    key = key_of(plan, checkpoints, dtype=dtype, anchor_layer=layer)
    folder = Path(out).absolute()
    if not dry_run:
        write_key(folder, key)
        remove_scratch(folder)
    tokenizer = load_tokenizer(plan.anchor.card)
    context = plan.anchor.card.context_length
    if max_length is not None and context is not None and max_length > context:
        raise StatesError(f"max_length: got {max_length}, but the anchor's context is {context}")
    limit = max_length or context
    datasets = [load_dataset(rows, tokenizer, max_length=limit, long_rows=long_rows, columns=columns) for rows in data]
    counter = TokenCounter(plan, key, tokenizer)
    shards = cut(datasets, counter, key, batch_size=batch_size, shard_bytes=shard_bytes)
    written = {file.name for file in shard_files(folder)}
    left = [shard for shard in shards if shard.name not in written]
    is_exact = all(run.card.modality == "text" for run in plan.runs)
    if not left:
        found = estimate(shards, left, is_exact=is_exact, seconds=0.0)
        say(show, str(found))
        return found
    make = partial(StateComputer, plan, checkpoints, key)
    with (
        nullcontext(_Here(make(device=device)))
        if num_workers == 0
        else _actors(make, device, num_workers, use_gpu=use_gpu)
    ) as workers:
        found = estimate(shards, left, is_exact=is_exact, seconds=_seconds(left, workers) / max(num_workers, 1))
        say(show, str(found))
        if dry_run:
            return found
        if (free := shutil.disk_usage(folder).free) < found.num_bytes_left:
            raise StatesError(f"{folder}: {found.num_bytes_left:,} bytes are needed, but {free:,} are free")
        done = found.num_samples - sum(shard.num_samples for shard in left)
        try:
            with progress(show, label="precompute", total=found.num_samples, done=done) as advance:
                workers.write(folder, left, advance)
        except KeyboardInterrupt:
            num_left = len({shard.name for shard in shards} - {file.name for file in shard_files(folder)})
            raise KeyboardInterrupt(
                f"interrupted: {len(shards) - num_left} of {len(shards)} shards are written; "
                "the same command goes on from there"
            ) from None
    return found


class _Workers(Protocol):
    def measure(self, batches: Sequence[Batch]) -> float:
        """Return how many seconds one worker takes for these batches."""

    def write(self, folder: Path, shards: Sequence[Shard], advance: Advance) -> None:
        """Write all of these shards."""


def _seconds(left: Sequence[Shard], workers: _Workers) -> float:
    """Measure a few batches of short, middling and long samples; time goes with the bytes."""
    pieces = sorted(
        ((piece.num_bytes, shard, piece) for shard in left for piece in shard.pieces), key=lambda found: found[0]
    )
    some = [pieces[place * (len(pieces) - 1) // max(_MEASURED - 1, 1)] for place in range(min(_MEASURED, len(pieces)))]
    if pieces[-1][0] == 0:  # prompt readers, and rows without a prompt
        return 0.0
    batches = [shard.dataset.batch(piece.indices) for _, shard, piece in some]
    workers.measure(batches[:1])  # the first call of a model is slower than all others
    share = sum(num_bytes for num_bytes, _, _ in some) / sum(num_bytes for num_bytes, _, _ in pieces)
    return workers.measure(batches) / share


class _Here:
    def __init__(self, computer: StateComputer) -> None:
        self.measure = computer.measure
        self._computer = computer

    def write(self, folder: Path, shards: Sequence[Shard], advance: Advance) -> None:
        # Between batches, because an exception that is raised just anywhere is lost in a __del__ or a callback.
        with stop_on_signals() as stop:

            def advance_or_stop(num_samples: int) -> None:
                if stop.requested:
                    raise KeyboardInterrupt
                advance(num_samples)

            for shard in shards:
                self._computer.write(folder, shard.batches(), advance_or_stop)


class _Pool:
    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def measure(self, batches: Sequence[Batch]) -> float:
        import ray

        seconds: float = ray.get(self._actors[0].measure.remote(batches))
        return seconds

    def write(self, folder: Path, shards: Sequence[Shard], advance: Advance) -> None:
        from ray.util import ActorPool

        pool = ActorPool(list(self._actors))
        for num_samples in pool.map_unordered(
            lambda actor, shard: actor.write.remote(folder, shard.batches()), list(shards)
        ):
            advance(num_samples)


@contextmanager
def _actors(make: partial[StateComputer], device: str, num_workers: int, *, use_gpu: bool) -> Iterator[_Workers]:
    """Start actors, on the cluster this process belongs to or on one of its own."""
    import ray
    from ray.exceptions import RayTaskError

    owns = not ray.is_initialized()
    if owns:
        # Named, because without an address Ray joins the private cluster of any other program on this machine.
        ray.init(os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False)
    actors: list[Any] = []
    try:
        total: dict[str, float] = ray.cluster_resources()
        wanted = {"CPU": num_workers, **({"GPU": num_workers} if use_gpu else {})}
        for resource, number in wanted.items():
            if total.get(resource, 0) < number:
                raise StatesError(
                    f"num_workers: got {num_workers}, one {resource} each, but the Ray cluster has "
                    f"{total.get(resource, 0):g}; ask for fewer, or start more nodes"
                )
        # A shard is whole or absent, so one that a lost worker was writing is simply computed again.
        actor = ray.remote(StateComputer).options(num_cpus=1, num_gpus=int(use_gpu), max_restarts=2, max_task_retries=2)
        actors = [actor.remote(*make.args, device=device) for _ in range(num_workers)]
        yield _Pool(actors)
    except RayTaskError as error:
        if isinstance(error.cause, CalmGraphError):
            raise error.cause from None
        raise
    finally:
        for each in actors:
            ray.kill(each)
        if owns:
            ray.shutdown()
