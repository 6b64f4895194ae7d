"""One of the processes of test_sharding.py: a folder of models, names; writes JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from calm_graph import Augmenter, Composition, every
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from registry import ModelCard, Registry
from tests.model.pico import train_at_random


def step(model: ComposedModel) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    ids = torch.arange(5, 45).view(2, 20)
    labels = ids.clone()
    labels[:, :8] = -100
    loss = model(ids, labels=labels).loss
    loss.backward()
    return loss.item(), {name: each.grad for name, each in model.attachments.named_parameters()}


def num_held(module: torch.nn.Module) -> int:
    return sum((each.to_local() if hasattr(each, "to_local") else each).numel() for each in module.parameters())


def parts(model: ComposedModel) -> dict[str, torch.nn.Module]:
    return {"anchor": model.anchor, **model.graph.backends}


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max((one[name] - two[name]).abs().max().item() for name in one)


def compare(name: str, registry: Registry) -> dict[str, Any]:
    inner = Composition(name="inner", anchor="reading", augmenters=[Augmenter("other", attach=every(2))])
    augmenters = [Augmenter(inner, attach=every(2)), Augmenter("other", attach=every(2), reading="prompt")]
    composition = Composition(name="sharded", anchor=name, augmenters=augmenters)
    whole = build_model(composition, registry=registry, seed=0).train()
    sharded = build_model(composition, registry=registry, seed=0, sharding="fsdp").train()
    train_at_random(whole)
    train_at_random(sharded)
    loss, gradients = step(whole)
    sharded_loss, sharded_gradients = step(sharded)
    sharded.activation_checkpointing_enable()
    recomputed_loss, recomputed_gradients = step(sharded)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole.save_pretrained(one)
        sharded.save_pretrained(two)
        differing = [
            path.name
            for path in Path(one).iterdir()
            if path.suffix == ".json" and path.read_bytes() != (Path(two) / path.name).read_bytes()
        ]
    return {
        "loss": loss,
        "loss_difference": max(abs(loss - sharded_loss), abs(loss - recomputed_loss)),
        "difference": max(difference(gradients, sharded_gradients), difference(gradients, recomputed_gradients)),
        "held": {key: num_held(parts(sharded)[key]) / num_held(part) for key, part in parts(whole).items()},
        "tied": [
            model.get_output_embeddings().weight is model.get_input_embeddings().weight for model in (whole, sharded)
        ],
        "trainable": sum(each.requires_grad for each in sharded.parameters()),
        "num_gradients": sum(each.grad is not None for each in sharded.parameters()),
        "differing_files": differing,
    }


def main() -> None:
    folder, *names = sys.argv[1:]
    registry = Registry([ModelCard(name=each.name, source=f"folder:{each}") for each in Path(folder).iterdir()])
    dist.init_process_group("gloo")
    found = {name: compare(name, registry) for name in names}
    Path(f"{folder}.{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
