"""A measured program in a process of its own, for peak memory, that does one piece of work whenever it is asked."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Child:
    """The asking side.

    Args:
        command: A program that ends in `answer`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def work(self, argument: int = 0) -> dict[str, Any]:
        """Let it work once.

        Returns:
            What its work returned, with `cpu_s`, `rss_mb` (now) and `peak_rss_mb`.

        Raises:
            RuntimeError: It has died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(argument, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}; run it to see why")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def children(*commands: Sequence[str]) -> Iterator[list[Child]]:
    """Start several programs, and end them with the `with`."""
    started: list[Child] = []
    try:
        started.extend(Child(command) for command in commands)
        yield started
    finally:
        for child in started:
            child.close()


def answer(work: Callable[[int], dict[str, Any]]) -> None:
    """The working side: work once for each line that comes, and write what was found as one line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        start_s = time.process_time()
        found = work(int(line))
        found["cpu_s"] = time.process_time() - start_s
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["rss_mb"] = pages * resource.getpagesize() / 2**20
        found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found), file=answers, flush=True)
