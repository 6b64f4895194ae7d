"""What the serving benchmarks share: a server in a process of its own, its memory, and the real pair of models."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

from calm_graph.serve.load.client import find_target
from calm_graph.serve.load.parts import Load, LoadResult
from calm_graph.serve.load.run import run_load

DEMO = Path(__file__).parents[1] / "examples" / "arithmetic" / "trained"
_START_S = 300.0
_TEXT = "the price of apples and pears in winter is more than what a small shop near the river asked for"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Args:
        url: With its port.
        process: It.
        log: What it writes.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def rss_mb(self) -> float:
        """Return the memory that it holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    def cpu_s(self) -> float:
        """Return the processor time that it took so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def put(self, load: Load, prompts: Sequence[str]) -> LoadResult:
        """Put a load on it."""

        async def run() -> LoadResult:
            target = await find_target(self.url, model=None, api_key=None, chat=False)
            return await run_load(target, load, cycle(prompts))

        return asyncio.run(run())


@contextmanager
def serving(checkpoint: Path, *options: str) -> Iterator[Server]:
    """Run `calm-graph serve` without Ray, in float32, and end it with the `with`.

    Args:
        checkpoint: What is served.
        options: Further ones of the command.

    Yields:
        The server, once it answers.

    Raises:
        RuntimeError: It did not start, or did not end by itself.
    """
    command = [sys.executable, "-m", "calm_graph", "serve", str(checkpoint)]
    command += ["--num-replicas", "0", "--port", "0", "--dtype", "float32", "--drain", "1", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            yield Server(_address(process, log), process, log)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError("the server does not end when it is told to") from None


@contextmanager
def real_pair(reading: Literal["prompt", "stream"] = "prompt") -> Iterator[Path]:
    """Save SmolLM2 and Gemma 3 with fresh attachments; it costs what a trained one does, and answers as SmolLM2.

    Args:
        reading: Of Gemma.

    Yields:
        The checkpoint.
    """
    from calm_graph.declare.composition import Augmenter, Composition, every
    from calm_graph.model.build import build_model

    composition = Composition(
        name="pair",
        anchor="smollm2-135m-instruct",
        augmenters=[Augmenter("gemma3-270m", attach=every(4), reading=reading)],
    )
    with tempfile.TemporaryDirectory() as folder:
        build_model(composition, seed=0).save_pretrained(folder)
        yield Path(folder)


def ragged(seed: int, lengths: Sequence[int] = (60, 900, 150, 400, 90, 600, 250, 40)) -> list[str]:
    """Return prompts of these lengths in characters; those of another seed are others, so that none is read already."""
    draws, words = random.Random(seed), _TEXT.split()
    return [" ".join(draws.choice(words) for _ in range(length // 5))[:length] for length in lengths]


def load_average() -> str:
    """Return how busy the machine was, for a reader of the figures."""
    return f"load average {os.getloadavg()[0]:.1f}"


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("serving at "):
                return line.split()[2].removesuffix("/v1")
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")
