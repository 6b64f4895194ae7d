"""A folder of cached states: a manifest that says what they depend on, and shards that are whole or absent.

A shard is one safetensors file: the keys of its samples, and for each run how many tokens each sample has and the
states of all of them, tokens x layers x width. It is written beside its place and moved there when it is complete, and
it carries the manifest's digest, so a shard that can be seen is whole and one from another cache is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from calm_graph.data.samples import Batch, Dataset
from calm_graph.data.sources import Rows, paths_of
from calm_graph.declare.composition import Composition
from calm_graph.errors import StatesError
from calm_graph.model.build import nested_checkpoints
from calm_graph.model.composed import ComposedModel
from calm_graph.model.stored import StoredStates
from calm_graph.plan.graph import make_plan
from calm_graph.plan.parts import Plan
from calm_graph.states.key import SAMPLE_KEY_BYTES, CacheKey, can_start_late, differences, key_of, sample_keys
from registry import ModelCard, Registry
from registry import registry as default_registry

MANIFEST = "manifest.json"
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class RunStates:
    """States of one run over the samples of a shard.

    Args:
        lengths: int64, tokens of each sample.
        states: float [tokens, layers, width].
    """

    lengths: torch.Tensor
    states: torch.Tensor


class StateStore:
    """Cached states, memory-mapped: what is read of a file is the samples that are asked for.

    Args:
        folder: What `precompute` wrote.

    Raises:
        StatesError: There is no cache, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.key = read_key(self.folder)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._shards: list[Any] = []
        self._ends: list[dict[str, list[int]]] = []
        for file in shard_files(self.folder):
            try:
                self._add(file)
            except (SafetensorError, OSError) as error:
                raise StatesError(f"{file}: damaged ({error}); remove it and run precompute again") from None

    def __len__(self) -> int:
        return len(self._places)

    def __reduce__(self) -> tuple[type[StateStore], tuple[Path]]:
        return StateStore, (self.folder.absolute(),)

    def check_fits(self, plan: Plan, checkpoints: Mapping[str, ModelCard]) -> None:
        """Refuse the states of other models, layers, tokenizers or ways of reading.

        Args:
            plan: The composition that is to be trained.
            checkpoints: Name -> card of the trained compositions among its augmenters.

        Raises:
            StatesError: Naming all that differs.
        """
        anchor = self.key.runs.get(plan.anchor.name)
        layer = anchor.layers[-1] if anchor is not None else None
        wanted = key_of(plan, checkpoints, dtype=self.key.dtype, anchor_layer=layer)
        problems = differences(wanted, self.key.narrowed(wanted))
        if layer is not None and not (can_start_late(plan) and layer <= plan.first_attached_layer):
            problems.append(
                f"runs.{plan.anchor.name}.layers: is [{layer}], but the first layer that is attached is "
                f"{plan.first_attached_layer}"
            )
        if problems:
            raise StatesError(
                f"{self.folder}: these states are not those of composition {plan.composition.name!r}: "
                f"{'; '.join(problems)}. Make them with calm-graph precompute, into a folder of their own"
            )

    def join(self, dataset: Dataset, rows: Rows) -> Dataset:
        """Return the data set with these states in each of its batches.

        Args:
            dataset: What the model will be called with.
            rows: Where it is from, for the error.

        Raises:
            StatesError: Some of its samples have no states here.
        """
        missing = [index for index, key in enumerate(_keys_of(dataset)) if key not in self._places]
        if missing:
            name = " --data ".join(map(str, paths_of(rows))) or "data"
            raise StatesError(
                f"{self.folder}: has no states for {len(missing)} of the {len(dataset)} samples of {name} (the first "
                f"is sample {missing[0]}): precompute did not see or finish them, or their text or max_length has "
                f"changed. Run: calm-graph precompute FILE --data {name} --out {self.folder}"
            )
        return replace(dataset, states_of=self.batch)

    def batch(self, batch: Batch) -> dict[str, StoredStates]:
        """Read the states of a batch: run name -> states, row after row.

        Raises:
            StatesError: A row has none.
        """
        try:
            places = [self._places[key] for key in sample_keys(batch)]
        except KeyError:
            raise StatesError(f"{self.folder}: a row of the batch has no states; run precompute over it") from None
        return {name: self._read(name, run.layers, places) for name, run in self.key.runs.items()}

    def _read(self, name: str, layers: tuple[int, ...], places: Sequence[tuple[int, int]]) -> StoredStates:
        parts = []
        for shard, sample in places:
            ends = self._ends[shard][name]
            parts.append(self._shards[shard].get_slice(_states_of(name))[ends[sample] : ends[sample + 1]])
        return StoredStates(
            layers=layers, lengths_B=torch.tensor([len(part) for part in parts]), states_RLC=torch.cat(parts)
        )

    def _add(self, file: Path) -> None:
        shard: Any = safe_open(file, framework="pt")
        if (shard.metadata() or {}).get("belongs_to") != self.key.digest():
            raise StatesError(f"{file}: it belongs to another cache than {MANIFEST} beside it; remove it")
        keys = shard.get_tensor("samples").numpy().tobytes()
        for sample in range(len(keys) // SAMPLE_KEY_BYTES):
            key = keys[sample * SAMPLE_KEY_BYTES : (sample + 1) * SAMPLE_KEY_BYTES]
            self._places[key] = len(self._shards), sample
        self._ends.append(
            {name: [0, *shard.get_tensor(_lengths_of(name)).cumsum(dim=0).tolist()] for name in self.key.runs}
        )
        self._shards.append(shard)


def open_states(
    folder: str | Path, composition: Composition | ComposedModel, *, registry: Registry | None = None
) -> StateStore:
    """Open cached states for the training of a composition.

    Args:
        folder: What `precompute` wrote.
        composition: What is trained.
        registry: Where a declaration's names are looked up; None is the default registry.

    Returns:
        The states.

    Raises:
        StatesError: There are none, they are damaged, or they are not those of this composition.
    """
    store = StateStore(folder)
    if isinstance(composition, ComposedModel):
        store.check_fits(composition.plan, {card.name: card for card in composition.checkpoints})
    else:
        registry = default_registry if registry is None else registry
        plan = make_plan(composition, registry=registry)
        store.check_fits(plan, nested_checkpoints(plan, registry))
    return store


def read_key(folder: Path) -> CacheKey:
    """Read what the states in a folder depend on.

    Raises:
        StatesError: It holds no cache, or one that this version does not know.
    """
    file = folder / MANIFEST
    try:
        return CacheKey.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StatesError(
            f"{folder}: there is no {MANIFEST}, so it holds no cached states; make them with calm-graph precompute"
        ) from None
    except (ValidationError, ValueError) as error:
        raise StatesError(f"{file}: damaged, or of another version of calm_graph ({error}); remove {folder}") from None


def write_key(folder: Path, key: CacheKey) -> None:
    """Write the manifest, if there is none yet.

    Raises:
        StatesError: The folder holds the states of something else, or cannot be written.
    """
    file = folder / MANIFEST
    if file.exists():
        if problems := differences(key, read_key(folder)):
            raise StatesError(f"{folder}: holds other states: {'; '.join(problems)}. Choose another folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{MANIFEST}.tmp"
        scratch.write_text(key.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, file)
    except OSError as error:
        raise StatesError(f"{folder}: cannot be written ({error})") from None


def shard_files(folder: Path) -> list[Path]:
    """Return the shards in a folder."""
    return sorted(folder.glob("*.safetensors"))


def write_shard(file: Path, key: CacheKey, samples: Sequence[bytes], runs: Mapping[str, RunStates]) -> None:
    """Write one shard; the file is there whole or not at all.

    Args:
        file: Where to.
        key: Of the cache.
        samples: Key of each sample.
        runs: Run name -> its states over these samples.

    Raises:
        StatesError: It cannot be written; the disk is full, for instance.
    """
    tensors = {"samples": torch.frombuffer(bytearray(b"".join(samples)), dtype=torch.uint8)}
    for name, run in runs.items():
        tensors |= {_lengths_of(name): run.lengths, _states_of(name): run.states}
    scratch = file.with_name(f".{file.name}.tmp")
    try:
        # One entry only: safetensors writes several in no fixed order, and a shard made again must be the same bytes.
        save_file(tensors, scratch, metadata={"belongs_to": key.digest()})
        with scratch.open("rb+") as written:
            os.fsync(written.fileno())
        # safetensors writes for the owner only; states are as readable as the manifest beside them.
        scratch.chmod((file.parent / MANIFEST).stat().st_mode & 0o777)
        os.replace(scratch, file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise StatesError(f"{file}: cannot be written ({error}); the shards before it are whole") from None


def remove_scratch(folder: Path) -> None:
    """Remove what a killed run left of a shard that it was writing."""
    for scratch in folder.glob(".*.safetensors.tmp"):
        scratch.unlink(missing_ok=True)


def _keys_of(dataset: Dataset) -> Iterator[bytes]:
    for first in range(0, len(dataset), _AT_ONCE):
        yield from sample_keys(dataset.batch(range(first, min(first + _AT_ONCE, len(dataset)))))


def _lengths_of(run: str) -> str:
    return f"{run}.lengths"


def _states_of(run: str) -> str:
    return f"{run}.states"
