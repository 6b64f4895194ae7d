"""What cached states are a function of: the frozen models, their layers, the way they read, and each sample's text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from calm_graph.data.samples import Batch
from calm_graph.errors import StatesError
from calm_graph.plan.parts import Plan, PlannedRun
from registry import ModelCard
from registry.fingerprint import fingerprint, tokenizer_fingerprint
from registry.layouts import LAYOUTS
from registry.weights import find_files, identity

SCHEMA_VERSION = 1
"""Changes whenever the same key may stand for other states."""

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SAMPLE_KEY_BYTES = 16


class RunKey(BaseModel):
    """What the states of one run depend on, besides the text.

    Args:
        layers: Whose outputs are kept, ascending.
        hidden_size: Width of the states.
        reading: Which text it sees.
        prompt_template: The text that stands for the prompt.
        open_words: Whether an unfinished last word is read.
        models: Name -> fingerprint of the frozen model and, where it is a trained composition itself, of its checkpoint
            and of all that it reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    hidden_size: int
    reading: str
    prompt_template: str | None
    open_words: str
    models: dict[str, str]


class CacheKey(BaseModel):
    """What a whole cache depends on, besides the texts: the content of its manifest.

    Args:
        schema_version: Of the cache.
        dtype: In which states are kept.
        anchor: Name of the anchor.
        tokenizer: Fingerprint of the anchor's tokenizer, which says what the tokens of a sample are.
        runs: Run name -> its key. The anchor's own has one layer: its blocks up to there are skipped in training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    dtype: Dtype
    anchor: str
    tokenizer: str | None
    runs: dict[str, RunKey]

    def digest(self) -> str:
        """Return the sha256 of all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def narrowed(self, wanted: CacheKey) -> CacheKey:
        """Return the key of the part that is asked for: a cache may hold more runs and layers than one composition."""
        runs = {}
        for name, run in self.runs.items():
            asked = wanted.runs.get(name)
            if asked is not None:
                runs[name] = run.model_copy(update={"layers": tuple(x for x in run.layers if x in asked.layers)})
        return self.model_copy(update={"runs": runs, "dtype": wanted.dtype})


def key_of(plan: Plan, checkpoints: Mapping[str, ModelCard], *, dtype: Dtype, anchor_layer: int | None) -> CacheKey:
    """Work out the key of the states that a composition's training reads.

    Args:
        plan: The composition's.
        checkpoints: Name -> card of the trained compositions among its augmenters.
        dtype: In which states are kept.
        anchor_layer: The anchor's layer that is kept as well, if any.

    Returns:
        The key; fingerprints are taken of the files, no weights are loaded.

    Raises:
        StatesError: An augmenter's states are no constants.
    """
    _check_constant(plan)
    runs = {
        name: RunKey(
            layers=layers,
            hidden_size=plan.run(name).hidden_size,
            reading=plan.run(name).reading,
            prompt_template=plan.run(name).prompt_template,
            open_words=plan.run(name).open_words,
            models=_models(plan, plan.run(name), checkpoints),
        )
        for name, layers in plan.read_by_anchor.items()
    }
    anchor = plan.anchor
    if anchor_layer is not None:
        runs[anchor.name] = RunKey(
            layers=(anchor_layer,),
            hidden_size=anchor.hidden_size,
            reading="stream",
            prompt_template=None,
            open_words="wait",
            models={anchor.card.name: fingerprint(find_files(anchor.card))},
        )
    tokenizer = tokenizer_fingerprint(find_files(anchor.card))
    return CacheKey(dtype=dtype, anchor=anchor.name, tokenizer=tokenizer, runs=runs)


def can_start_late(plan: Plan) -> bool:
    """Whether the anchor's blocks up to its first attachment can be skipped: it must be known what blocks return."""
    return plan.anchor.card.architecture in LAYOUTS


def differences(wanted: CacheKey, found: CacheKey) -> list[str]:
    """Return what differs, one text for each field: `runs.gemma3-270m.reading: is 'prompt', but 'stream' is asked`."""
    flat = [dict(_flat(key.model_dump(mode="json"))) for key in (wanted, found)]
    return [
        f"{name}: {_said(flat[1], name)}, but {_said(flat[0], name, verb='')} is asked for"
        for name in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(name, ...) != flat[1].get(name, ...)
    ]


def sample_keys(batch: Batch) -> list[bytes]:
    """Return, for each sample of a batch, a digest of all that any model reads of it."""
    keys = []
    for row, (length, text) in enumerate(zip(batch["prompt_lengths"].tolist(), batch["prompt_texts"], strict=True)):
        digest = hashlib.sha256(json.dumps([length, text]).encode())
        digest.update(_bytes(batch["input_ids"][row][batch["attention_mask"][row]].to(torch.int32)))
        for name, inputs in sorted(batch["augmenter_inputs"].items()):
            for key, values in sorted(inputs.items()):
                value = values[row]
                digest.update(f"{name} {key} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(_bytes(value))
        keys.append(digest.digest()[:SAMPLE_KEY_BYTES])
    return keys


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_constant(plan: Plan) -> None:
    for edge in plan.edges:
        trained = [found.key for found in edge.attachments if found.trainable]
        if trained and edge.target != plan.anchor.name:
            raise StatesError(
                f"composition {plan.composition.name!r}: the states of augmenter {edge.target!r} are not constant, "
                f"because {trained[0]!r}, which is trained here, writes into it; train {edge.target!r} with what it "
                "reads first and use that checkpoint as the augmenter, or train without cached states"
            )


def _models(plan: Plan, run: PlannedRun, checkpoints: Mapping[str, ModelCard]) -> dict[str, str]:
    """Name -> fingerprint of a model and of all that writes into it."""
    found = {run.card.name: _identity(run.card)}
    for edge in plan.into(run.name):
        found |= _models(plan, plan.run(edge.source), checkpoints)
        for name in {planned.checkpoint for planned in edge.attachments if planned.checkpoint is not None}:
            found[name] = fingerprint(find_files(checkpoints[name]))
    return dict(sorted(found.items()))


def _identity(card: ModelCard) -> str:
    """An export shares the fingerprint of the model it was made from, but not, in fewer bits, its states."""
    if card.remote is not None:
        precision = "" if card.remote.wire == "float32" else f"{card.remote.wire}:"
        return f"{precision}{identity(card)}"
    if card.onnx is None:
        return fingerprint(find_files(card))
    digest = hashlib.sha256(json.dumps(card.onnx.model_dump(mode="json")["files"], sort_keys=True).encode())
    return f"onnx:{digest.hexdigest()}"


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, inner in value.items() for leaf in _flat(inner, f"{path}.{key}" if path else key)]


def _said(flat: Mapping[str, Any], name: str, verb: str = "is ") -> str:
    return f"{verb}{flat[name]!r}" if name in flat else f"{verb}nothing"
