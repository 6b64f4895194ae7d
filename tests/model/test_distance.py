"""Attachments with `positions="distance"`: near text weighs more, and cached decoding stays exact."""

from __future__ import annotations

import torch

from calm_graph import Augmenter, every
from calm_graph.model.attachment import Attachment
from tests.model.pico import Zoo
from tests.model.test_architectures import check_cached_equals_full


def test_the_first_head_looks_at_the_same_place() -> None:
    torch.manual_seed(0)
    attachment = Attachment(source_width=8, target_width=8, num_heads=2, head_dim=4, positions="distance")
    torch.nn.init.eye_(attachment.output.weight)
    torch.nn.init.zeros_(attachment.query.weight)  # no content: distance alone decides
    index = torch.arange(5)[None]
    keys, values = attachment.context(torch.randn(1, 5, 8), index)
    visible = torch.ones(1, 5, 5, dtype=torch.bool)
    out = attachment(
        torch.randn(1, 5, 8), keys=keys, values=values, visible_BTS=visible, index_BT=index, source_index_BS=index
    )
    # Independent: softmax of -4 |t - s| for the first head.
    weights = torch.softmax(-4.0 * (index.T - index).abs(), dim=-1)
    torch.testing.assert_close(out[0, :, :4], weights @ values[0, 0])


def test_cached_decoding_is_exact(zoo: Zoo) -> None:
    check_cached_equals_full(zoo.compose(Augmenter("other", attach=every(2), positions="distance")))
