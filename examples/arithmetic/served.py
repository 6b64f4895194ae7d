"""Serve a composition on this machine as its users would, and ask it through the official client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

READY_S = 120


@contextmanager
def served(checkpoint: Path, *, num_replicas: int, port: int = 0) -> Iterator[str]:
    """Run `calm-graph serve` in a process of its own.

    Args:
        checkpoint: Of the composition.
        num_replicas: Engines on Ray; 0 is one in the process, without Ray.
        port: To listen at; 0 takes a free one, without Ray only.

    Yields:
        The server's address.

    Raises:
        RuntimeError: It did not start; with what it said.
    """
    command = [sys.executable, "-m", "calm_graph", "serve", str(checkpoint), "--num-replicas", str(num_replicas)]
    process = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, text=True)
    alarm = threading.Timer(READY_S, process.kill)
    alarm.start()
    try:
        said = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"serving at (http://\S+)/v1", line):
                break
        else:
            raise RuntimeError(f"the server did not start within {READY_S} s: {''.join(said)}")
        alarm.cancel()
        # What it says later is shown, and must not fill the pipe.
        threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
        yield found[1]
    finally:
        alarm.cancel()
        process.send_signal(signal.SIGINT)
        process.wait()


def answers(
    address: str, model: str, prompts: Sequence[str], *, augmenters: dict[str, float] | None = None
) -> list[str]:
    """Ask a server to go on with prompts.

    Args:
        address: Of the server.
        model: Name of the composition.
        prompts: In order.
        augmenters: Factors, as requests may give them; 0 switches one off.

    Returns:
        The answers, in the same order.
    """
    with OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        completion = client.completions.create(
            model=model,
            prompt=list(prompts),
            max_tokens=8,
            temperature=0,
            extra_body={"augmenters": augmenters or {}},
        )
    return [choice.text.strip() for choice in completion.choices]
