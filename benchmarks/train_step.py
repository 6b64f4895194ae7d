"""A training step takes at most 1.08 x the time of its parts: augmenter, frozen anchor (both ways), attachments."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.bar import Bar
from benchmarks.pair import full_batch, make_pair, random_ids
from benchmarks.shapes import BATCH_SIZE, NUM_TOKENS
from calm_graph.augmenters.taps import BlockCall, Start, during
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.data.samples import Batch
from calm_graph.declare.settings import TrainSettings
from calm_graph.model.attachment import Attachment
from calm_graph.model.composed import ComposedModel
from calm_graph.train.step import make_optimizer, train_step

BAR_RATIO = 1.08
NUM_WARMUPS = 2
NUM_ROUNDS = 8


def measure() -> Bar:
    """Run the step and each part in turn, on one thread; the value is the median over rounds of step / sum of parts."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = make_pair(Path(folder)).train()
    works: dict[str, Callable[[], object]] = {
        "step": step(model, full_batch(random_ids())),
        "augmenter": _augmenter(model),
        "anchor": anchor(model),
        "attachments": attachments(model),
    }
    return compare("train_step", works)


def compare(name: str, works: dict[str, Callable[[], object]]) -> Bar:
    """Run the step and its parts in turn.

    Args:
        name: Of the benchmark.
        works: The `step` first, then its parts.

    Returns:
        The median over rounds of step / sum of parts.
    """
    rounds = [{name: _seconds(work) for name, work in works.items()} for _ in range(NUM_WARMUPS + NUM_ROUNDS)]
    rounds = rounds[NUM_WARMUPS:]
    for part in works:
        taken = [each[part] for each in rounds]
        print(f"{part:<12} median {statistics.median(taken):.3f} s, best {min(taken):.3f} s")
    ratios = [each["step"] / (sum(each.values()) - each["step"]) for each in rounds]
    print("step / sum of parts, by round:", " ".join(f"{ratio:.3f}" for ratio in ratios))
    ratio = statistics.median(ratios)
    return Bar(name=name, value=round(ratio, 3), bar=BAR_RATIO, holds=ratio <= BAR_RATIO, unit="ratio")


def _seconds(work: Callable[[], object]) -> float:
    """Processor time: with one thread it is what the work takes on an idle core, whoever else is on the machine."""
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def step(model: ComposedModel, batch: Batch) -> Callable[[], object]:
    """A step on one batch."""
    optimizer = make_optimizer(model, TrainSettings())
    return lambda: train_step(model, [batch], optimizer, learning_rate=1e-4, max_grad_norm=1.0)


def _augmenter(model: ComposedModel) -> Callable[[], object]:
    (backend,) = model.graph.backends.values()
    assert isinstance(backend, TorchBackend)
    ids = random_ids()

    @torch.no_grad()
    def work() -> None:
        backend.body(input_ids=ids, use_cache=False)

    return work


def anchor(model: ComposedModel, start: Start | None = None) -> Callable[[], object]:
    """The anchor as transformers runs it, with gradients down to the first attached layer: below it is none."""
    first = model.plan.first_attached_layer
    ids = random_ids()

    def work() -> None:
        writes = {first: lambda hidden_BTD: hidden_BTD.detach().requires_grad_()}
        with during(BlockCall(writes=writes, start=start)):
            loss = model.anchor(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return work


def attachments(model: ComposedModel) -> Callable[[], object]:
    """Context, attention and update of each attachment, on states that another model could have left."""
    copies = nn.ModuleList(_like(model.attachments[planned.key]) for planned in model.plan.attachments)
    first = min(planned.anchor_layer for planned in model.plan.attachments)
    shape = (BATCH_SIZE, NUM_TOKENS)
    sources = [torch.randn(*shape, planned.source_width) for planned in model.plan.attachments]
    targets = [
        torch.randn(*shape, planned.target_width, requires_grad=planned.anchor_layer > first)
        for planned in model.plan.attachments
    ]
    optimizer = torch.optim.AdamW(copies.parameters(), lr=1e-4)
    index_BT = torch.arange(NUM_TOKENS).expand(shape)
    visible_BTS = index_BT[:, None, :] <= index_BT[:, :, None]

    def work() -> None:
        for module, source_BSC, target_BTD in zip(copies, sources, targets, strict=True):
            assert isinstance(module, Attachment)
            keys, values = module.context(source_BSC, index_BT)
            added_BTD = module(
                target_BTD,
                keys=keys,
                values=values,
                visible_BTS=visible_BTS,
                index_BT=index_BT,
                source_index_BS=index_BT,
            )
            added_BTD.backward(torch.ones_like(added_BTD))
            target_BTD.grad = None
        nn.utils.clip_grad_norm_(copies.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def _like(module: nn.Module) -> Attachment:
    assert isinstance(module, Attachment)
    return Attachment(
        source_width=module.source_width,
        target_width=module.target_width,
        num_heads=module.num_heads,
        head_dim=module.head_dim,
    )
