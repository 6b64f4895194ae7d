"""Cut rows into shards before anything runs, and add up what they will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calm_graph.data.samples import Batch, Dataset
from calm_graph.states.compute import TokenCounter, shard_name
from calm_graph.states.key import DTYPES, CacheKey, sample_keys

_COUNTED_AT_ONCE = 256
# How many states a picture or a sound has is known once its model has run, and shards are cut before that.
_TOKENS_OF_OWN_INPUTS = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples that run at once.

    Args:
        indices: In the data set.
        num_bytes: Of their states.
    """

    indices: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Samples whose states are one file.

    Args:
        dataset: Where they are.
        pieces: Of similar lengths, for less padding.
        name: Of the file; the same samples always give the same name.
        num_tokens: Run name -> tokens.
    """

    dataset: Dataset
    pieces: tuple[Piece, ...]
    name: str
    num_tokens: Mapping[str, int]

    @property
    def num_samples(self) -> int:
        """How many samples it holds."""
        return sum(len(piece.indices) for piece in self.pieces)

    @property
    def num_bytes(self) -> int:
        """Size of the states."""
        return sum(piece.num_bytes for piece in self.pieces)

    def batches(self) -> list[Batch]:
        """Collate all its samples."""
        return [self.dataset.batch(piece.indices) for piece in self.pieces]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What the cache of some rows takes.

    Args:
        num_samples: Samples, equal ones counted once.
        num_tokens: Run name -> tokens over all samples.
        num_bytes: Of all states.
        num_bytes_left: Of those that are not written yet.
        num_shards: Files.
        num_shards_left: Files that are not written yet.
        is_exact: False where an augmenter reads something else than text: how many states that has is guessed.
        seconds: For what is left; 0 when nothing is.
    """

    num_samples: int
    num_tokens: Mapping[str, int]
    num_bytes: int
    num_bytes_left: int
    num_shards: int
    num_shards_left: int
    is_exact: bool
    seconds: float

    def __str__(self) -> str:
        tokens = ", ".join(f"{count:,} of {name}" for name, count in self.num_tokens.items())
        done = self.num_shards - self.num_shards_left
        parts = [
            f"{self.num_samples:,} samples, tokens: {tokens}",
            f"{'' if self.is_exact else 'about '}{_size(self.num_bytes)} in {self.num_shards} shards"
            + (f" ({done} written already)" if done else ""),
        ]
        if self.num_shards_left:
            parts.append(f"about {_duration(self.seconds)}")
        return "; ".join(parts)


def cut(
    datasets: Sequence[Dataset], counter: TokenCounter, key: CacheKey, *, batch_size: int, shard_bytes: int
) -> list[Shard]:
    """Cut rows into shards, the same way whatever is written already; equal samples are kept once.

    Args:
        datasets: The rows; no shard has samples of two of them.
        counter: Counts the tokens that each run reads.
        key: What is kept.
        batch_size: Samples that run at once.
        shard_bytes: A shard is closed before it would be larger.

    Returns:
        All shards, in the order of the rows.
    """
    width = {name: len(run.layers) * run.hidden_size * DTYPES[key.dtype].itemsize for name, run in key.runs.items()}
    seen: set[bytes] = set()
    shards = []
    for dataset in datasets:
        open_shard: list[_Sample] = []
        num_bytes = 0
        for sample in _samples(dataset, counter, width):
            if sample.key in seen:
                continue
            seen.add(sample.key)
            if open_shard and num_bytes + sample.num_bytes > shard_bytes:
                shards.append(_shard(dataset, open_shard, batch_size))
                open_shard, num_bytes = [], 0
            open_shard.append(sample)
            num_bytes += sample.num_bytes
        if open_shard:
            shards.append(_shard(dataset, open_shard, batch_size))
    return shards


def estimate(shards: Sequence[Shard], left: Sequence[Shard], *, is_exact: bool, seconds: float) -> Estimate:
    """Add up.

    Args:
        shards: All of them.
        left: Those that are not written yet.
        is_exact: As in `Estimate`.
        seconds: As in `Estimate`.
    """
    names = shards[0].num_tokens.keys() if shards else ()
    return Estimate(
        num_samples=sum(shard.num_samples for shard in shards),
        num_tokens={name: sum(shard.num_tokens[name] for shard in shards) for name in names},
        num_bytes=sum(shard.num_bytes for shard in shards),
        num_bytes_left=sum(shard.num_bytes for shard in left),
        num_shards=len(shards),
        num_shards_left=len(left),
        is_exact=is_exact,
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int
    key: bytes
    num_tokens: Mapping[str, int]
    num_bytes: int


def _samples(dataset: Dataset, counter: TokenCounter, width: Mapping[str, int]) -> list[_Sample]:
    found = []
    for first in range(0, len(dataset), _COUNTED_AT_ONCE):
        batch = dataset.batch(range(first, min(first + _COUNTED_AT_ONCE, len(dataset))))
        counts = counter.count(batch)
        for row, key in enumerate(sample_keys(batch)):
            tokens = {name: counts[name][row] if name in counts else _TOKENS_OF_OWN_INPUTS for name in width}
            num_bytes = sum(tokens[name] * width[name] for name in width)
            found.append(_Sample(first + row, key, tokens, num_bytes))
    return found


def _shard(dataset: Dataset, samples: Sequence[_Sample], batch_size: int) -> Shard:
    ordered = sorted(samples, key=lambda sample: sample.num_bytes)
    groups = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
    return Shard(
        dataset=dataset,
        pieces=tuple(
            Piece(tuple(sample.index for sample in group), sum(sample.num_bytes for sample in group))
            for group in groups
        ),
        name=shard_name([sample.key for sample in ordered]),
        num_tokens={name: sum(sample.num_tokens[name] for sample in samples) for name in samples[0].num_tokens},
    )


def _size(num_bytes: int) -> str:
    size, unit = float(num_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
