"""Run the frozen models of a composition over batches, and keep what its training will read of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.data.samples import Batch
from calm_graph.errors import StatesError
from calm_graph.model.build import build_graph
from calm_graph.model.runtimes import text_readers
from calm_graph.model.tokens import AnchorTokens, Tokens
from calm_graph.plan.parts import Plan
from calm_graph.states.key import DTYPES, CacheKey, sample_keys
from calm_graph.states.store import RunStates, write_shard
from registry import ModelCard
from registry.weights import load_body, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shard_name(samples: Sequence[bytes]) -> str:
    """Return the file name of the shard of these samples: the same samples are found again, whoever wrote them."""
    return f"{hashlib.sha256(b''.join(samples)).hexdigest()[:24]}.safetensors"


class TokenCounter:
    """Counts the tokens that each run reads of a sample; loads tokenizers, no weights.

    Args:
        plan: The composition's.
        key: What is to be kept.
        tokenizer: The anchor's.
    """

    def __init__(self, plan: Plan, key: CacheKey, tokenizer: PreTrainedTokenizerBase) -> None:
        self._key = key
        self._make_readers = text_readers(plan, tokenizer)

    def count(self, batch: Batch) -> dict[str, list[int]]:
        """Return run name -> tokens of each sample; runs with inputs of their own are left out."""
        anchor = anchor_tokens(batch)
        is_prompt_BT = anchor.index_BT < batch["prompt_lengths"][:, None]
        counts = {self._key.anchor: anchor.real_BT.sum(dim=1).tolist()}
        for name, make in self._make_readers.items():
            reader = make()
            tokens = reader.begin(anchor.where(is_prompt_BT), batch["prompt_texts"])
            counts[name] = tokens.then(reader.push(anchor.where(~is_prompt_BT))[0]).real_BS.sum(dim=1).tolist()
        return {name: found for name, found in counts.items() if name in self._key.runs}


class StateComputer:
    """The frozen models of a composition, cut off after what is kept.

    Args:
        plan: The composition's.
        checkpoints: Name -> card of the trained compositions among its augmenters.
        key: What is to be kept.
        device: Where they run; `auto` takes a GPU when there is one. On a CPU they run in fp32, which is exact and
            faster than bf16 there; elsewhere in what their files hold.
    """

    def __init__(self, plan: Plan, checkpoints: Mapping[str, ModelCard], key: CacheKey, *, device: str) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._device = torch.device(device)
        except RuntimeError as error:
            raise StatesError(f"device: got {device!r}: {error}") from None
        self._plan, self._key = plan, key
        dtype = torch.float32 if self._device.type == "cpu" else None
        tokenizer = load_tokenizer(plan.anchor.card)
        self._graph = build_graph(plan, tokenizer=tokenizer, checkpoints=checkpoints, dtype=dtype).to(self._device)
        self._anchor: TorchBackend | None = None
        if key.anchor in key.runs:
            card = plan.anchor.card
            body = load_body(card, key.runs[key.anchor].layers[-1] + 1, dtype=dtype)
            self._anchor = TorchBackend(body, name=card.name, context_length=card.context_length).to(self._device)

    def write(self, folder: Path, batches: Sequence[Batch], advance: Callable[[int], None] | None = None) -> int:
        """Compute the states of some batches and write them as one shard.

        Args:
            folder: Of the cache; its manifest is there already.
            batches: The samples of the shard, in its order.
            advance: Hears of the number of samples after each batch.

        Returns:
            How many samples it has.
        """
        samples = [key for batch in batches for key in sample_keys(batch)]
        parts = []
        for batch in batches:
            parts.append(self.states(batch))
            if advance is not None:
                advance(len(batch["prompt_texts"]))
        runs = {
            name: RunStates(
                lengths=torch.cat([part[name].lengths for part in parts]),
                states=torch.cat([part[name].states for part in parts]),
            )
            for name in self._key.runs
        }
        write_shard(folder / shard_name(samples), self._key, samples, runs)
        return len(samples)

    def measure(self, batches: Sequence[Batch]) -> float:
        """Return how many seconds the states of these batches take."""
        began = time.perf_counter()
        for batch in batches:
            self.states(batch)
        return time.perf_counter() - began

    @torch.inference_mode()
    def states(self, batch: Batch) -> dict[str, RunStates]:
        """Return the states of each run that is kept.

        Args:
            batch: Samples of the training data.

        Returns:
            Run name -> states on the CPU, in the dtype of the cache.

        Raises:
            StatesError: A state is not finite, or too large for that dtype.
        """
        anchor = anchor_tokens(batch, device=self._device)
        request = self._graph.new_request(keeps=False)
        kept: dict[str, tuple[Tokens, Mapping[int, torch.Tensor]]] = {}
        request.kept = kept
        self._graph.begin(
            request,
            anchor,
            prompt_lengths=batch["prompt_lengths"],
            prompt_texts=batch["prompt_texts"],
            inputs=batch["augmenter_inputs"],
        )
        self._graph.push(request, anchor)
        # A run is not there if it had nothing to read: a prompt reader's rows without a prompt.
        read = {name: (tokens.real_BS, by_layer) for name, (tokens, by_layer) in kept.items()}
        if self._anchor is not None:
            by_layer = self._anchor.read_tokens(
                anchor.ids_BT,
                anchor.real_BT,
                known_at_BS=anchor.index_BT,
                taps=frozenset(self._key.runs[self._key.anchor].layers),
                writes={},
            )
            read[self._key.anchor] = anchor.real_BT, by_layer
        nothing_BS = anchor.real_BT[:, :0]
        return {name: self._flat(name, *read.get(name, (nothing_BS, None))) for name in self._key.runs}

    def _flat(self, name: str, real_BS: torch.Tensor, by_layer: Mapping[int, torch.Tensor] | None) -> RunStates:
        """Keep the layers that are asked for, of real tokens, in the dtype of the cache."""
        run, dtype = self._key.runs[name], DTYPES[self._key.dtype]
        if by_layer is None:
            by_layer = dict.fromkeys(run.layers, torch.empty(*real_BS.shape, run.hidden_size, device=real_BS.device))
        exact_RLC = torch.stack([by_layer[layer][real_BS] for layer in run.layers], dim=1)
        states_RLC = exact_RLC.to(dtype)
        if not bool(states_RLC.isfinite().all()):
            reason = "are not finite numbers"
            if bool(exact_RLC.isfinite().all()):
                most, limit = float(exact_RLC.abs().max()), torch.finfo(dtype).max
                reason = f"reach {most:.3g}, but {self._key.dtype} holds at most {limit:.3g}; use another dtype"
            raise StatesError(f"states of {name!r}: some {reason}")
        return RunStates(real_BS.sum(dim=1).cpu(), states_RLC.cpu())


def anchor_tokens(batch: Batch, *, device: torch.device | str = "cpu") -> AnchorTokens:
    """The anchor's tokens of a batch of the data, as the composed model counts them in training."""
    real_BT = batch["attention_mask"].bool().to(device)
    index_BT = (real_BT.long().cumsum(dim=1) - 1).clamp(min=0)
    return AnchorTokens(ids_BT=batch["input_ids"].to(device), real_BT=real_BT, index_BT=index_BT)
