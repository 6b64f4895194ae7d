"""A model of a card's architecture with fresh random weights: what an augmenter is worth that has learnt nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from calm_graph.errors import EvaluationError
from calm_graph.model.checkpoint import staged
from registry import ModelCard, Registry
from registry.catalog import CARD_FILE
from registry.weights import load_config, load_tokenizer, quiet


def randomise(card: ModelCard, out: str | Path, *, seed: int = 0) -> ModelCard:
    """Write a folder with a model of the same architecture and tokenizer, initialised as before any training.

    Args:
        card: Of a model that runs in torch.
        out: The folder; it must be empty or new.
        seed: Of the weights; the same seed gives the same files.

    Returns:
        A card of the new model, `NAME-random`; it is also in the folder, so that `--registry OUT` names the model.

    Raises:
        EvaluationError: The folder holds something, or the model does not run in torch.
        WeightsError: The card's model cannot be found.
        CheckpointError: The folder cannot be written.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"out: {out} is not an empty folder; choose another one")
    if card.runtime != "torch":
        raise EvaluationError(f"card {card.name!r}: it runs in {card.runtime}; name the torch model that it came from")
    config = load_config(card)
    factory: Any = AutoModelForCausalLM if card.causal else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Other widths than float32 would draw other numbers.
        model = factory.from_config(config, dtype=torch.float32)
    model.to(config.dtype or torch.float32)
    random = ModelCard(
        name=f"{card.name}-random",
        source="folder:.",
        modality=card.modality,
        licence=card.licence,
        description=f"{card.name} with random weights, seed {seed}",
    )
    with staged(out) as stage, quiet():
        model.save_pretrained(stage)
        if card.modality == "text":
            load_tokenizer(card).save_pretrained(stage)
        written = random.model_dump(mode="json", exclude_defaults=True)
        (stage / CARD_FILE).write_text(json.dumps(written, indent=2) + "\n")
    return random.model_copy(update={"source": f"folder:{out.absolute()}"})


def read_random(folder: str | Path) -> ModelCard | None:
    """Return the card of a folder that `randomise` wrote; None where there is none."""
    if not (Path(folder) / CARD_FILE).is_file():
        return None
    (card,) = Registry().add_folder(folder)
    return card
