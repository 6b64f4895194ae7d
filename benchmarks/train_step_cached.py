"""A training step from cached states takes at most 1.08 x the time of the anchor (both ways) and the attachments."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.bar import Bar
from benchmarks.pair import full_batch, make_pair, random_ids, with_stored_states
from benchmarks.train_step import anchor, attachments, compare, step
from calm_graph.augmenters.taps import Start


def measure() -> Bar:
    """Run the step and each part in turn, on one thread; the value is the median over rounds of step / sum of parts."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = make_pair(Path(folder)).train()
    batch = with_stored_states(model, full_batch(random_ids()))
    first, name = model.plan.first_attached_layer, model.plan.anchor.name
    states_BTD = batch["stored_states"][name].padded(batch["attention_mask"], layers=[first], name=name)[first]
    start = Start(layer=first, states=states_BTD, in_tuple=False)
    return compare(
        "train_step_cached",
        {"step": step(model, batch), "anchor": anchor(model, start), "attachments": attachments(model)},
    )
