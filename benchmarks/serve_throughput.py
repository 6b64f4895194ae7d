"""Serving SmolLM2 + Gemma: 8 requests at once give 2.5 x the tokens/s of one at a time, as a bare batch nearly does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._serving import Server, load_average, ragged, real_pair, serving
from benchmarks.bar import Bar
from calm_graph.model.composed import ComposedModel
from calm_graph.serve.load.parts import Load

BAR_RATIO = 2.5
BAR_OF_GENERATE = 0.85
BAR_GAP = 3.5
NUM_TOGETHER = 8
NUM_TOKENS = 48
NUM_ROUNDS = 3


def measure() -> Bar:
    """Measure in turns, with prompts that are new each time; the value is the median over rounds of 8 at once / one.

    The bar also holds the server to 0.85 of a bare batched `generate` of the same eight requests, and the p95 of the
    time between tokens at 8 to 3.5 x that at one.
    """
    torch.set_num_threads(2)
    with real_pair() as checkpoint, serving(checkpoint, "--num-cpus", "2") as server:
        generate = _generate(checkpoint)
        generate(ragged(-1))
        server.put(_load(NUM_TOGETHER), ragged(-1))
        rounds: list[tuple[_Taken, _Taken, _Taken]] = []
        for number in range(NUM_ROUNDS):
            alone = _served(server, 1, ragged(2 * number))
            together = _served(server, NUM_TOGETHER, ragged(2 * number + 1))
            start_s = time.process_time()
            seconds = generate(ragged(2 * number + 1))
            bare = _Taken(seconds, time.process_time() - start_s)
            rounds.append((alone, together, bare))
            print(f"one: {alone}; {NUM_TOGETHER} at once: {together}; generate: {bare}; {load_average()}", flush=True)
    ratio = statistics.median(together.tokens_per_s / alone.tokens_per_s for alone, together, _ in rounds)
    of_generate = statistics.median(together.tokens_per_s / bare.tokens_per_s for _, together, bare in rounds)
    gap = statistics.median(together.gap_s / alone.gap_s for alone, together, _ in rounds)
    work = statistics.median(alone.cpu_s / together.cpu_s for alone, together, _ in rounds)
    bare_work = statistics.median(bare.cpu_s / together.cpu_s for _, together, bare in rounds)
    print(
        f"of generate {of_generate:.2f} (bar {BAR_OF_GENERATE}), p95 between tokens {gap:.2f} x (bar {BAR_GAP}); "
        f"in processor time: {work:.2f} x one, {bare_work:.2f} of generate"
    )
    holds = ratio >= BAR_RATIO and of_generate >= BAR_OF_GENERATE and gap <= BAR_GAP
    return Bar(name="serve_throughput", value=round(ratio, 2), bar=BAR_RATIO, holds=holds, unit="x")


@dataclass(frozen=True, slots=True)
class _Taken:
    """What eight answers took: seconds on the clock and of the processor, and the p95 between two tokens."""

    seconds: float
    cpu_s: float
    gap_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return NUM_TOGETHER * NUM_TOKENS / self.seconds

    def __str__(self) -> str:
        gap = f", p95 between tokens {1000 * self.gap_s:.0f} ms" if self.gap_s else ""
        return (
            f"{self.tokens_per_s:.1f} tokens/s ({NUM_TOGETHER * NUM_TOKENS / self.cpu_s:.1f} a processor second){gap}"
        )


def _served(server: Server, concurrency: int, prompts: list[str]) -> _Taken:
    start_s = server.cpu_s()
    result = server.put(_load(concurrency), prompts)
    assert not result.errors, result.errors
    return _Taken(result.seconds, server.cpu_s() - start_s, result.gap_s(95))


def _load(concurrency: int) -> Load:
    return Load(concurrency=concurrency, num_requests=NUM_TOGETHER, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)


def _generate(checkpoint: Path) -> Callable[[list[str]], float]:
    """Return what continues prompts in one batch and tells the seconds."""
    model = ComposedModel.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"

    def run(prompts: list[str]) -> float:
        start_s = time.perf_counter()
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        answer: Any = model.generate(  # type: ignore[misc]
            **batch,
            prompt_lengths=batch["attention_mask"].sum(dim=1),
            prompt_texts=prompts,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        assert answer.shape[1] == batch["input_ids"].shape[1] + NUM_TOKENS
        return time.perf_counter() - start_s

    return run
