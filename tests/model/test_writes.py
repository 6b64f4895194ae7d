"""What attachments write, measured against the streams themselves."""

from __future__ import annotations

import threading

import pytest
import torch

from calm_graph import Augmenter, every
from calm_graph.model.writes import measured_writes
from tests.model.pico import Zoo


def test_shares_are_norms_relative_to_the_stream(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("same", attach=every(2), reading="stream"), trained=True)
    ids = torch.arange(5, 15)[None]
    (first, *_) = model.plan.attachments
    seen: list[torch.Tensor] = []
    # Before and after the write: hooks of a block run in the order in which they were registered.
    block = model.anchor.get_decoder().layers[first.anchor_layer]
    block.register_forward_hook(lambda *args: seen.append(args[2].detach().clone()), prepend=True)
    block.register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
    with torch.no_grad(), measured_writes() as writes:
        model(input_ids=ids)
    expected = (seen[1] - seen[0]).norm() / seen[0].norm()
    assert writes.shares()[first.key] == pytest.approx(float(expected), rel=1e-4)
    assert writes.shares().keys() == {attachment.key for attachment in model.plan.attachments}


def test_nothing_is_measured_outside_or_in_another_thread(zoo: Zoo) -> None:
    model = zoo.compose(Augmenter("same", attach=every(2), reading="stream"), trained=True)
    ids = torch.arange(5, 15)[None]
    with measured_writes() as writes:
        thread = threading.Thread(target=lambda: model(input_ids=ids))
        thread.start()
        thread.join()
    model(input_ids=ids)
    assert writes.squares == {}
