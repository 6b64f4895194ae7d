"""The key-value demo with int8 augmenters loses at most one point; in fp32 ONNX its cached decoding is exact."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch

from benchmarks.bar import Bar
from calm_graph.model.composed import ComposedModel

BAR_POINTS = 1.0
BAR_DIFFERENCE = 1e-4


def measure() -> Bar:
    """Ask the shipped composition 1,000 questions a task; the value is the largest loss of any task, in points.

    The bar also holds the largest difference between cached decoding and the full forward to 1e-4.
    """
    from examples.arithmetic.demo import SHIPPED
    from examples.arithmetic.measure import measure as measure_tasks
    from examples.arithmetic.measure import table
    from examples.onnx.swap import export_all

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the shifted states, which are what is measured
        exports = {each: export_all(SHIPPED, Path(folder), each) for each in ("fp32", "int8")}
        models = {"torch": ComposedModel.from_pretrained(SHIPPED)}
        models |= {each: ComposedModel.from_pretrained(SHIPPED, exports=found) for each, found in exports.items()}
        rows = [
            row
            for name, model in models.items()
            for row in measure_tasks(name, model, model.tokenizer, count=1000, seed=0)
        ]
        print(table(rows))
        scores = {(row["model"], row["task"], row["split"]): 100 * row["accuracy"] for row in rows}
        lost = max(scores["torch", task, split] - scores["int8", task, split] for _, task, split in scores)
        difference = _cached_difference(models["fp32"])
    print(f"cached decoding and full forward differ by at most {difference:.1e} (bar {BAR_DIFFERENCE:g})")
    holds = lost <= BAR_POINTS and difference <= BAR_DIFFERENCE
    return Bar(name="onnx_demo", value=round(lost, 2), bar=BAR_POINTS, holds=holds, unit="points lost (int8)")


def _cached_difference(model: ComposedModel) -> float:
    """Largest difference of the logits after a prompt, token by token and all at once."""
    from examples.arithmetic.data import DEPARTMENT_NAMES, test_rows

    rows = test_rows("mixed", list(DEPARTMENT_NAMES), split="unseen", count=32, seed=0)
    texts = [row.prompt for row in rows]
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    later = torch.randint(5, 40, (len(texts), 4), generator=torch.Generator().manual_seed(0))
    lengths, width = mask.sum(dim=1), ids.shape[1]
    ids, mask = torch.cat([ids, later], dim=1), torch.cat([mask, torch.ones_like(later)], dim=1)
    cache = model.new_cache()
    with torch.no_grad():
        full = model(ids, mask, prompt_lengths=lengths).logits[:, width - 1 :]
        steps = [model(ids[:, :width], mask[:, :width], past_key_values=cache, prompt_lengths=lengths).logits[:, -1:]]
        for end in range(width + 1, ids.shape[1] + 1):
            steps.append(model(ids[:, end - 1 : end], mask[:, :end], past_key_values=cache).logits)
    return float((torch.cat(steps, dim=1) - full).abs().max())
