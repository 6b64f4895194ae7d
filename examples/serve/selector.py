"""Each request wakes only the augmenter it needs: of the demo's two price lists, the one that knows its words."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from calm_graph.generate.engine import Engine
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.generate.models import load_models
from calm_graph.generate.requests import GenerationRequest, TokenOutput
from calm_graph.generate.sampling import Sampling
from calm_graph.generate.selector import Prompt
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import prompt_ids
from examples.arithmetic.compositions import both
from examples.arithmetic.data import Row, test_rows
from examples.arithmetic.demo import SHIPPED
from examples.arithmetic.recipe import train_composition
from registry import registry
from registry.weights import load_tokenizer


def choose(prompt: Prompt) -> list[str]:
    """Return the augmenters whose vocabulary has a word of the prompt."""
    words = re.findall("[a-z]+", prompt.text)
    return [name for name in prompt.augmenters if any(word in _vocabulary(name) for word in words)]


@cache
def _vocabulary(name: str) -> frozenset[str]:
    return frozenset(load_tokenizer(registry.get(name)).get_vocab())


def main() -> None:
    """Ask the same questions with both augmenters and with those that are chosen, and compare."""
    parser = argparse.ArgumentParser(prog="python -m examples.serve.selector", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="questions of each kind")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train a composition as it is served")
    parser.add_argument("--out", type=Path, default=Path("runs/selector"), help="of the training")
    options = parser.parse_args()
    count = options.count
    if options.train:
        train_composition(
            both,
            ["garden", "kitchen"],
            steps=options.train,
            seed=0,
            out=options.out,
            selector="examples.serve.selector:choose",
        )
    models = load_models([("demo-both", options.out if options.train else SHIPPED)])
    names = ["garden", "kitchen"]
    kinds = {
        "numbers": test_rows("numeric", names, split="unseen", count=count),
        "garden": test_rows("key_value", ["garden"], split="unseen", count=count),
        "kitchen": test_rows("key_value", ["kitchen"], split="unseen", count=count),
        "mixed": test_rows("mixed", names, split="unseen", count=count),
    }
    rows = [row for kind in kinds.values() for row in kind]
    for name, selectors in (("both run", {}), ("chosen", {"demo-both": choose})):
        engine = Engine(models, EngineSettings(max_waiting=len(rows), prefix_tokens=0), selectors=selectors)
        began_s = time.perf_counter()
        right = answered_right(engine, models["demo-both"], rows)
        by_kind = [right[place * count : (place + 1) * count] for place in range(len(kinds))]
        seconds = time.perf_counter() - began_s
        counts = engine.statistics()
        shares = (f"{kind} {100 * sum(of) / count:.1f}%" for kind, of in zip(kinds, by_kind, strict=True))
        print(
            f"{name:<9} {' '.join(shares)}, {seconds:.1f} s; augmenters ran over "
            f"{sum(counts.augmenter_tokens.values()):,} tokens in {sum(counts.augmenter_s.values()):.2f} s; "
            f"saved {sum(counts.skipped_tokens.values()):,} tokens, {sum(counts.saved_flops.values()) / 1e9:.1f} GFLOPs"
        )


def answered_right(engine: Engine, model: ComposedModel, rows: Iterable[Row]) -> list[bool]:
    """Tell which rows an engine answers rightly, all asked together."""
    answers: dict[str, str] = {}
    expected = {}
    for place, row in enumerate(rows):
        ids = tuple(prompt_ids(model.tokenizer, row.prompt))
        expected[str(place)] = row.completion.strip()
        engine.add(
            GenerationRequest(
                id=str(place), composition="demo-both", prompt_ids=ids, sampling=Sampling(max_new_tokens=8)
            )
        )
    while engine.has_work:
        for id, output in engine.step():
            if isinstance(output, Exception):
                raise output
            if isinstance(output, TokenOutput):
                answers[id] = answers.get(id, "") + output.text
    return [answers[id].strip() == text for id, text in expected.items()]


if __name__ == "__main__":
    # Models this small gain little from a second thread, and lose much by it where others use the machine.
    torch.set_num_threads(1)
    main()
