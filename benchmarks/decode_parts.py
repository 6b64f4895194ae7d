"""A decode step takes at most 1.08 x the time of its parts alone: anchor, augmenter to its last tap, attachments."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache

from benchmarks._serving import load_average, real_pair
from benchmarks.bar import Bar
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.generate.engine import Engine
from calm_graph.generate.requests import GenerationRequest
from calm_graph.generate.sampling import Sampling
from calm_graph.model.attachment import Attachment
from calm_graph.model.composed import ComposedModel

BAR_RATIO = 1.08
NUM_PROMPT_TOKENS = 96
NUM_WARMUPS = 3
NUM_STEPS = 6
NUM_ROUNDS = 5
READINGS: tuple[Literal["prompt", "stream"], ...] = ("prompt", "stream")
BATCH_SIZES = (1, 8)


def measure() -> Bar:
    """Run each step of an engine and then its parts, on one thread, in processor time.

    Returns:
        The largest of the four cases' ratios: each the median over rounds of six steps.
    """
    torch.set_num_threads(1)
    ratios = []
    for reading in READINGS:
        with real_pair(reading) as checkpoint:
            model = ComposedModel.from_pretrained(checkpoint, dtype=torch.float32)
        ratios += [_compare(model, reading, num_rows) for num_rows in BATCH_SIZES]
    ratio = max(ratios)
    return Bar(name="decode_parts", value=round(ratio, 3), bar=BAR_RATIO, holds=ratio <= BAR_RATIO, unit="ratio")


@torch.inference_mode()
def _compare(model: ComposedModel, reading: str, num_rows: int) -> float:
    engine = _reading_done(model, num_rows)
    calls = _watched(model)
    parts = _Parts(model, engine)
    rounds: list[dict[str, float]] = []
    for number in range(NUM_WARMUPS + NUM_ROUNDS * NUM_STEPS):
        calls.clear()
        taken = {"step": _seconds(engine.step)}
        taken |= {name: _seconds(work) for name, work in parts.of(list(calls)).items()}
        if number >= NUM_WARMUPS:
            if (number - NUM_WARMUPS) % NUM_STEPS == 0:
                rounds.append(dict.fromkeys(taken, 0.0))
            for name, seconds in taken.items():
                rounds[-1][name] += seconds
    ratios = [each["step"] / (sum(each.values()) - each["step"]) for each in rounds]
    shown = "  ".join(
        f"{name} {1000 * statistics.median(each[name] for each in rounds) / NUM_STEPS:.1f} ms" for name in rounds[0]
    )
    print(f"{reading:<7} batch {num_rows}: {shown}")
    print(
        f"  step / sum of parts, by round: {' '.join(f'{ratio:.3f}' for ratio in ratios)}; {load_average()}", flush=True
    )
    return statistics.median(ratios)


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def _reading_done(model: ComposedModel, num_rows: int) -> Engine:
    """An engine that has read the prompts of so many answers and decodes them from now on."""
    engine = Engine({"pair": model})
    draws = torch.Generator().manual_seed(0)
    num_new = NUM_WARMUPS + NUM_STEPS * NUM_ROUNDS + num_rows + 4
    for row in range(num_rows):
        ids = torch.randint(1000, 20_000, (NUM_PROMPT_TOKENS,), generator=draws).tolist()
        sampling = Sampling(max_new_tokens=num_new, ignore_eos=True)
        engine.add(GenerationRequest(id=f"{row}", composition="pair", prompt_ids=tuple(ids), sampling=sampling))
    while len(engine._answers) < num_rows:
        engine.step()
    return engine


def _watched(model: ComposedModel) -> list[int]:
    """Where the widths of the augmenter's calls are noted from now on."""
    widths: list[int] = []
    backend = _backend(model)
    run = TorchBackend.read_tokens

    def noted(ids_BS: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.append(ids_BS.shape[1])
        return run(backend, ids_BS, *args, **kwargs)

    vars(backend)["read_tokens"] = noted
    return widths


def _backend(model: ComposedModel) -> TorchBackend:
    (backend,) = model.graph.backends.values()
    assert isinstance(backend, TorchBackend)
    return backend


@dataclass(slots=True)
class _Attached:
    """An attachment with random states of the shapes that the engine's have."""

    module: Attachment
    target_B1D: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class _Parts:
    """What a step is made of, on models of their own keys and values, of the lengths that the engine's have now."""

    def __init__(self, model: ComposedModel, engine: Engine) -> None:
        ((group, rows),) = engine._batch.groups
        self.num_rows = len(rows)
        self.model, self.body = model, _backend(model).body
        self.anchor_cache, self.augmenter_cache = DynamicCache(), DynamicCache()
        self.num_anchor_tokens = engine._batch.width
        model.anchor(input_ids=self._ids(engine._batch.width), past_key_values=self.anchor_cache, use_cache=True)
        for cache in group.request.caches.values():
            assert cache.real_BL is not None
            self.body(input_ids=self._ids(cache.real_BL.shape[1]), past_key_values=self.augmenter_cache, use_cache=True)
        (context,) = group.request.contexts.values()
        self.attached = []
        for planned in model.plan.attachments:
            module = model.attachments[planned.key]
            assert isinstance(module, Attachment)
            keys, values = (torch.randn(each.shape) for each in context.layers[planned.key])
            target_B1D = torch.randn(self.num_rows, 1, planned.target_width)
            self.attached.append(_Attached(module, target_B1D, keys, values))

    def of(self, widths: list[int]) -> dict[str, Callable[[], object]]:
        """Return the parts of a step in which the augmenter ran over so many tokens of each row."""
        return {
            "anchor": self._anchor,
            "augmenter": lambda: self._augmenter(widths),
            "attachments": lambda: self._attachments(sum(widths)),
        }

    def _ids(self, num_tokens: int) -> torch.Tensor:
        return torch.randint(1000, 20_000, (self.num_rows, num_tokens))

    def _anchor(self) -> None:
        self.model.anchor(input_ids=self._ids(1), past_key_values=self.anchor_cache, use_cache=True, logits_to_keep=1)

    def _augmenter(self, widths: list[int]) -> None:
        for width in widths:
            self.body(input_ids=self._ids(width), past_key_values=self.augmenter_cache, use_cache=True)

    def _attachments(self, num_new: int) -> None:
        """Take new states up, and attend."""
        index_B1 = torch.full((self.num_rows, 1), self.num_anchor_tokens)
        for attached in self.attached:
            if num_new:
                states = torch.randn(self.num_rows, num_new, attached.module.source_width)
                keys, values = attached.module.context(states, index_B1.expand(-1, num_new))
                attached.keys = torch.cat([attached.keys, keys], dim=2)
                attached.values = torch.cat([attached.values, values], dim=2)
            num_sources = attached.keys.shape[2]
            attached.module(
                attached.target_B1D,
                keys=attached.keys,
                values=attached.values,
                visible_BTS=torch.ones(self.num_rows, 1, num_sources, dtype=torch.bool),
                index_BT=index_B1,
                source_index_BS=torch.zeros(self.num_rows, num_sources, dtype=torch.int64),
            )
