"""Three real models of three architectures and three tokenizers, composed, trained, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from calm_graph import Augmenter, ComposedModel, Composition, build_model, every

pytestmark = [pytest.mark.realmodels, pytest.mark.timeout(600)]

COMPOSITION = Composition(
    name="real",
    anchor="smollm2-135m-instruct",
    augmenters=[
        Augmenter("gemma3-270m", attach=every(4)),
        Augmenter("qwen2.5-coder-0.5b", attach=every(8), reading="prompt"),
    ],
)
PROMPTS = ["The capital of France is", "def fibonacci(n):\n    # the n-th number of"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model(models_dir: Path) -> ComposedModel:
    return build_model(COMPOSITION, dtype=torch.float32, seed=0)


@pytest.fixture
def rows(model: ComposedModel) -> dict[str, torch.Tensor]:
    return dict(model.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left"))


def test_describe(models_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_text(COMPOSITION.model_dump_json())
    command = [sys.executable, "-m", "calm_graph", "describe", str(file), "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert "smollm2-135m-instruct" in json.dumps(found)


def test_real_models(model: ComposedModel, rows: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with torch.no_grad():
        # Two left-padded rows of different length: the fresh model is the anchor bit for bit.
        positions = (rows["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        assert torch.equal(model(**rows).logits, model.anchor(**rows, position_ids=positions).logits)
    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}

    trainable = [each for each in model.parameters() if each.requires_grad]
    assert len(trainable) == 7 * len(model.attachments)
    optimizer = torch.optim.AdamW(trainable, lr=3e-4)
    model.train()
    losses = []
    for _ in range(5):
        loss = model(**rows, labels=labels_of(rows)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    assert losses == sorted(losses, reverse=True), losses
    assert all(torch.equal(each, frozen[name]) for name, each in model.named_parameters() if name in frozen)

    cached = model.generate(**rows, **GREEDY)
    assert torch.equal(cached, model.generate(**rows, **GREEDY, use_cache=False))

    model.save_pretrained(tmp_path)
    loaded = ComposedModel.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(**rows).logits, model(**rows).logits)


def labels_of(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    labels[:, :-3] = -100
    return labels
