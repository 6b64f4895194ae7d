"""LoRA on the anchor (arXiv 2106.09685) with as many trainable parameters as a composition; the only door to peft."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines.trained_anchor import TrainedAnchor
from calm_graph.model.checkpoint import copy_exactly
from registry import ModelCard
from registry.layouts import blocks

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

LEARNING_RATE = 5e-4
"""Where nothing else is said."""

WEIGHTS = "adapter_model.safetensors"

_SCALE = 2
"""lora_alpha / rank of every layer, as is usual; it is a factor on the learning rate."""

_GOLDEN = 0.618034


class LoraAnchor(TrainedAnchor):
    """An anchor with low-rank updates of every linear layer of its blocks; its own weights stay as they are.

    Args:
        card: Of the anchor.
        settings: Of the run that is to come.
        num_parameters: How many to train, as near as whole ranks allow.
        name: What the model is called.
    """

    kind = "lora"

    def __init__(self, card: ModelCard, *, settings: TrainSettings, num_parameters: int, name: str = "lora") -> None:
        super().__init__(card, settings=settings, name=name, num_composition_parameters=num_parameters)
        ranks = choose_ranks(linear_sizes(self.anchor), num_parameters)
        torch.manual_seed(settings.seed)  # of the first factor's initialisation; the second is zero
        self.lora_config = _config(ranks, self.anchor, card)
        _peft().inject_adapter_in_model(self.lora_config, self.anchor)

    def write_trained(self, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`, which peft and transformers load, too."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _updates(self.anchor).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        self.lora_config.save_pretrained(str(folder))

    def read_trained(self, folder: Path) -> None:
        """Put the updates of a folder over the trained ones."""
        copy_exactly(_updates(self.anchor), load_file(folder / WEIGHTS), where=str(folder))


def merge_updates(anchor: PreTrainedModel, folder: str | Path) -> None:
    """Add the updates of a folder to the weights of an anchor, which then costs no more to run than before.

    Args:
        anchor: A fresh load of the model they were trained on, in float32 if nothing is to be lost; it is changed.
        folder: Of the trained baseline.

    Raises:
        CheckpointError: The updates are not of this model.
    """
    peft = _peft()
    peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(str(folder)), anchor)
    copy_exactly(_updates(anchor), load_file(Path(folder) / WEIGHTS), where=str(folder))
    layer = importlib.import_module("peft.tuners.lora").LoraLayer
    for name, module in list(anchor.named_modules()):
        if isinstance(module, layer):
            module.merge()
            anchor.set_submodule(name, module.get_base_layer())
    anchor.requires_grad_(False)


def linear_sizes(anchor: nn.Module) -> dict[str, int]:
    """Return what one rank costs in each linear layer of the blocks: its inputs and outputs.

    Args:
        anchor: A transformers model of a known layout.

    Returns:
        Name of the layer in the anchor -> parameters of one rank.
    """
    from transformers.pytorch_utils import Conv1D

    inside = {id(module) for module in blocks(anchor).modules()}
    return {
        name: sum(module.weight.shape)
        for name, module in anchor.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }


def choose_ranks(sizes: Mapping[str, int], num_parameters: int) -> dict[str, int]:
    """Share out a number of parameters: one rank for all layers, and one more for as many as the rest allows.

    Args:
        sizes: Layer -> parameters of one rank.
        num_parameters: How many are wanted.

    Returns:
        Layer -> rank; layers that get nothing are left out.

    Raises:
        EvaluationError: They do not reach for one rank of one layer.
    """
    least = min(sizes.values())
    if num_parameters < least:
        raise EvaluationError(
            f"lora: got {num_parameters} parameters to train, but one rank of the smallest layer has {least}; "
            "compare with a larger composition"
        )
    rank, rest = divmod(num_parameters, sum(sizes.values()))
    ranks = dict.fromkeys(sizes, rank)
    # The layers that get one more are spread over the whole depth.
    spread = sorted(enumerate(sizes), key=lambda item: item[0] * _GOLDEN % 1)
    for _, name in spread:
        if sizes[name] / 2 < rest:
            ranks[name] += 1
            rest -= sizes[name]
    return {name: rank for name, rank in ranks.items() if rank}


def _updates(anchor: nn.Module) -> dict[str, torch.Tensor]:
    """The low-rank factors of an anchor, under the names that peft gives them in files."""
    return {
        f"base_model.model.{name.replace('.default.', '.')}": parameter
        for name, parameter in anchor.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def _config(ranks: Mapping[str, int], anchor: nn.Module, card: ModelCard) -> LoraConfig:
    rank = min(ranks.values())
    others = {re.escape(name): each for name, each in ranks.items() if each != rank}
    return _peft().LoraConfig(  # type: ignore[no-any-return]
        task_type="CAUSAL_LM",
        base_model_name_or_path=card.location if card.scheme == "hub" else card.name,
        target_modules=list(ranks),
        r=rank,
        lora_alpha=_SCALE * rank,
        rank_pattern=others,
        alpha_pattern={name: _SCALE * each for name, each in others.items()},
        lora_dropout=0.0,
        # GPT-2's linear layers keep their weights the other way round.
        fan_in_fan_out=not isinstance(anchor.get_submodule(next(iter(ranks))), nn.Linear),
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise EvaluationError("lora: needs peft; pip install 'calm-graph[evaluate]'") from error
    return peft
