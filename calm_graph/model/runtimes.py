"""How each augmenter of a plan runs (torch, ONNX Runtime, a service) and how it reads the anchor's text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from calm_graph.augmenters.base import Backend
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.model.alignment import Reader, SharedReader, TextReader
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.plan.parts import Plan, PlannedRun
from registry import ModelCard
from registry.fingerprint import tokenizer_fingerprint
from registry.weights import find_files, load_body, load_tokenizer

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_session import OnnxSettings


def load_backends(
    runs: list[PlannedRun], dtype: torch.dtype | None, onnx: OnnxSettings | None, num_shards: int
) -> dict[str, Backend]:
    """Load each model once, as deep as its deepest run.

    Args:
        runs: Of augmenters.
        dtype: Of the frozen weights; None keeps what their files hold.
        onnx: Threads and providers of those that run in ONNX Runtime; None: the CPU, as many threads as torch.
        num_shards: How many processes share each model.

    Returns:
        Run name -> what runs it.
    """
    deepest: dict[tuple[str, str], PlannedRun] = {}
    for run in sorted(runs, key=lambda each: each.num_blocks):
        deepest[run.card.name, run.runtime] = run
    loaded = {model: _load_backend(run, dtype, onnx, num_shards) for model, run in deepest.items()}
    return {run.name: loaded[run.card.name, run.runtime] for run in runs}


def text_readers(plan: Plan, tokenizer: Any) -> dict[str, Callable[[], Reader]]:
    """Choose how each augmenter reads the anchor's text; those with inputs of their own have no reader.

    Args:
        plan: What runs.
        tokenizer: The anchor's.

    Returns:
        Run name -> maker of its reader.
    """
    readers: dict[str, Callable[[], Reader]] = {}
    anchor_bytes: TokenBytes | None = None
    for run in plan.runs:
        if run.is_anchor or run.card.modality != "text":
            continue
        streams = run.reading == "stream"
        if run.prompt_template is None and _same_tokenizer(run.card, plan.anchor.card):
            readers[run.name] = partial(SharedReader, streams=streams, vocab_size=run.card.vocab_size)
            continue
        anchor_bytes = anchor_bytes or TokenBytes(tokenizer)
        readers[run.name] = partial(
            TextReader,
            anchor_bytes=anchor_bytes,
            tokenizer=TextTokenizer.of(load_tokenizer(run.card)),
            streams=streams,
            template=run.prompt_template,
            open_words=run.open_words,
        )
    return readers


def _load_backend(run: PlannedRun, dtype: torch.dtype | None, onnx: OnnxSettings | None, num_shards: int) -> Backend:
    named: dict[str, Any] = {"name": run.card.name, "context_length": run.card.context_length}
    if run.runtime == "torch":
        return TorchBackend(load_body(run.card, run.num_blocks, dtype=dtype, num_shards=num_shards), **named)
    if run.runtime == "remote":
        from calm_graph.augmenters.remote_backend import RemoteBackend

        return RemoteBackend(run.card, **named)
    from calm_graph.augmenters.onnx_backend import OnnxBackend
    from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings

    return OnnxBackend(OnnxSession(run.card, onnx or OnnxSettings(num_threads=torch.get_num_threads())), **named)


def _same_tokenizer(card: ModelCard, anchor: ModelCard) -> bool:
    """Whether token ids are shared. The files decide: a name on a card is for people."""
    ours, theirs = (tokenizer_fingerprint(find_files(each)) for each in (card, anchor))
    return ours is not None and ours == theirs
