"""Train the composition in two stages: first what the anchor would hold had it been told the values, then the answers.

From the answers alone it is hard to learn: nothing says which digit belongs at which token, and all of the anchor
stands between the loss and the attachments. But the values of the training keys are known, so the same expression can
be told in numbers, `56 +37 =` for `wfbb + xmit =`, token for token. What the anchor holds of that after its first
blocks is what the attachments should make of the keys, and only those blocks have to run.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from calm_graph import TrainSettings, fit
from calm_graph.augmenters.taps import BlockCall, up_to
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from examples.key_value.composition import composition
from examples.key_value.world import EXAMPLE, Split, keys, row, table
from registry import Registry
from registry import registry as default_registry

AFTER_LAYER = 4
"""Where the anchor's states are compared: above the last attachment."""
EXAMPLE_SHARE, NUMBER_SHARE = 0.25, 0.1


def main() -> None:
    """Train on the keys of a split and save a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m examples.key_value.train", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("runs/key_value/data"), help="what questions wrote")
    parser.add_argument("--augmenter", type=Path, default=Path("runs/key_value/prices"))
    parser.add_argument("--out", type=Path, default=Path("runs/key_value/run"))
    parser.add_argument("--split", choices=("seen", "tune"), default="seen", help="as given to questions")
    parser.add_argument("--told-steps", type=int, default=900, help="of 32 expressions, the first stage")
    parser.add_argument("--steps", type=int, default=30, help="of 24 rows, the second stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    registry = Registry(default_registry)
    registry.add_folder(args.augmenter, replace=True)
    # Its file holds bf16, in which most CPUs are several times slower.
    dtype = torch.float32 if not torch.cuda.is_available() else None
    model = build_model(composition, registry=registry, seed=args.seed, dtype=dtype)
    learn_what_is_told(model, split=args.split, steps=args.told_steps, seed=args.seed)
    model.save_pretrained(args.out / "told")
    settings = TrainSettings(
        max_steps=args.steps,
        batch_size=24,
        learning_rate=1e-4,
        warmup_steps=5,
        eval_every_steps=10,
        seed=args.seed,
    )
    fit(model, data=args.data / "kv/train.jsonl", eval_data=args.data / "kv/dev.jsonl", out=args.out, settings=settings)


def told(prompt: str) -> str:
    """Write each key as its value, in as many tokens: the anchor's space before a number would be one more."""
    return re.sub(r" ?\b([a-z]{4,6})\b", lambda found: str(table()[found[1]]), prompt)


def learn_what_is_told(
    model: ComposedModel, *, split: Split, steps: int, seed: int, batch_size: int = 32, learning_rate: float = 1e-3
) -> None:
    """Train attachments until the anchor's states over keys are those over the numbers.

    Args:
        model: Of the composition.
        split: Whose keys.
        steps: Of `batch_size` prompts.
        seed: Of the split and the prompts.
        batch_size: Prompts of a step.
        learning_rate: Its highest.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1)
    rng = random.Random(f"told/{seed}")
    names = keys(split, seed=seed)
    started_s = time.perf_counter()
    for step in range(steps):
        loss = difference(model, expressions(rng, names, batch_size))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0 or step == 0:
            seconds = time.perf_counter() - started_s
            print(f"told {step + 1}/{steps}  difference {loss.item():.4f}  {seconds:.0f} s", flush=True)


def expressions(rng: random.Random, names: list[str], count: int) -> list[str]:
    """Draw expressions, most lots without the prompt's example, which is always the same and half of the tokens."""
    start = EXAMPLE if rng.random() < EXAMPLE_SHARE else "\n"
    drawn = (row(rng, names, num_operands=rng.randint(1, 3), number_share=NUMBER_SHARE) for _ in range(count))
    return [start + each["prompt"].removeprefix(EXAMPLE) for each in drawn]


def difference(model: ComposedModel, prompts: list[str]) -> torch.Tensor:
    """Return how far the states over keys are from those over numbers.

    States are compared as the next block reads them, that is normalised: what was there for the key cannot be taken
    away by something that does not know it, but it can be made small beside what is written. Their size counts too,
    a tenth as much: beside large states what later blocks add would be lost. The first token is one of them; it is
    what attention rests on, and without its outlying elements every head goes astray.
    """
    ids, mask = _padded(model, prompts)
    ids_told, mask_told = _padded(model, [told(prompt) for prompt in prompts])
    assert torch.equal(mask, mask_told), "a key has as many tokens as its value"
    with torch.no_grad(), model.augmenters(dict.fromkeys((edge.source for edge in model.plan.edges), 0.0)):
        wanted = _states(model, ids_told, mask)[mask.bool()]
    found = _states(model, ids, mask)[mask.bool()]
    width = (wanted.shape[-1],)
    ratio = found.pow(2).mean(dim=-1) / wanted.pow(2).mean(dim=-1)
    return (F.rms_norm(found, width) - F.rms_norm(wanted, width)).pow(2).mean() + 0.1 * (ratio.log() / 2).pow(2).mean()


def _states(model: ComposedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    tokens = model.anchor_tokens(ids, mask)
    request = model.graph.new_request(keeps=False)
    model.graph.begin(request, tokens, prompt_lengths=mask.sum(dim=1), prompt_texts=None, inputs={})
    model.graph.push(request, tokens)
    anchor = model.plan.anchor.name
    writes = model.graph.writes(anchor, request, clock_BT=tokens.index_BT, index_BT=tokens.index_BT)
    call = BlockCall(taps=frozenset({AFTER_LAYER}), writes=writes)
    with up_to(AFTER_LAYER, call):
        model.anchor(input_ids=ids, attention_mask=mask, position_ids=tokens.index_BT, use_cache=False)
    return call.states[AFTER_LAYER]


def _ids(model: ComposedModel, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _padded(model: ComposedModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [_ids(model, text) for text in texts]
    width = max(map(len, rows))
    return (
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    )


if __name__ == "__main__":
    main()
