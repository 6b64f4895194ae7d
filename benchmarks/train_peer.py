"""Training is 1.2 x as fast as calm-pytorch (another CALM code) on the same shapes, and its memory does not grow."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar
from benchmarks.child import Child, answer, children
from benchmarks.shapes import BATCH_SIZE, NUM_TOKENS

BAR_RATIO = 1.2
BAR_RATIO_CACHED = 1.4
BAR_GROWTH_MB = 8.0
NUM_WARMUPS = 2
NUM_ROUNDS = 6
NUM_STEPS = 200
SETTLED = 20
SHORT = ("1", "16")
"""Rows and tokens where only the memory matters: a step that keeps something keeps it at any size."""
PEER = ("torch==2.13.0", "calm-pytorch==0.2.2", "x-transformers==2.31.10")


def measure() -> Bar:
    """Alternate steps of both, each in a process of one thread; the value is the ratio of steps per second."""
    ours = [sys.executable, "-m", "benchmarks.train_peer"]
    theirs = [str(_peer_python()), "-m", "benchmarks.calm_pytorch"]
    shape = (str(BATCH_SIZE), str(NUM_TOKENS))
    with children([*ours, *shape], [*ours, *shape, "cached"], [*theirs, *shape]) as three:
        rounds = [[child.work() for child in three] for _ in range(NUM_WARMUPS + NUM_ROUNDS)]
    names = ("calm_graph", "with states", "calm-pytorch")
    for name, found in zip(names, zip(*rounds[NUM_WARMUPS:], strict=True), strict=True):
        median_s = statistics.median(each["cpu_s"] for each in found)
        print(f"{name:<12} {median_s:.3f} s a step, peak {found[-1]['peak_rss_mb']:.0f} MB")
    ratio, ratio_cached = (
        statistics.median(each[2]["cpu_s"] / each[place]["cpu_s"] for each in rounds[NUM_WARMUPS:]) for place in (0, 1)
    )
    print(f"steps/s of calm-pytorch's: {ratio:.2f} x (bar {BAR_RATIO}), with states {ratio_cached:.2f} x ", end="")
    print(f"(bar {BAR_RATIO_CACHED})")
    with children([*ours, *SHORT], [*theirs, *SHORT]) as pair:
        growth_mb, peer_mb = (_growth_mb(child) for child in pair)
    print(f"memory from step {SETTLED} to {NUM_STEPS}, {' x '.join(SHORT)} tokens: {growth_mb:+.1f} MB ", end="")
    print(f"(bar {BAR_GROWTH_MB:.0f}), calm-pytorch {peer_mb:+.1f} MB")
    holds = ratio >= BAR_RATIO and ratio_cached >= BAR_RATIO_CACHED and growth_mb <= BAR_GROWTH_MB
    return Bar(name="train_peer", value=round(ratio, 2), bar=BAR_RATIO, holds=holds, unit="ratio")


def _growth_mb(child: Child) -> float:
    used_mb = [child.work()["rss_mb"] for _ in range(NUM_STEPS)]
    growth: float = used_mb[-1] - used_mb[SETTLED]
    return growth


def _peer_python() -> Path:
    """The interpreter of a venv with the peer, made when there is none yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "calm-graph" / "peers"
    folder = cache / "calm-pytorch"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        print(f"installing {' '.join(PEER)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        done.touch()
    return python


def _work(num_rows: int, num_tokens: int, *, cached: bool) -> None:
    import torch

    from benchmarks.pair import full_batch, make_pair, random_ids, with_stored_states
    from calm_graph.declare.settings import TrainSettings
    from calm_graph.train.step import make_optimizer, train_step

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = make_pair(Path(folder)).train()
    optimizer = make_optimizer(model, TrainSettings())
    batch = full_batch(random_ids(num_rows, num_tokens))
    if cached:
        batch = with_stored_states(model, batch)

    def step(_: int) -> dict[str, Any]:
        train_step(model, [batch], optimizer, learning_rate=1e-4)
        return {}

    answer(step)


if __name__ == "__main__":
    _work(int(sys.argv[1]), int(sys.argv[2]), cached="cached" in sys.argv[3:])
