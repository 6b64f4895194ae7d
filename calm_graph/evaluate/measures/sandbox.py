"""Programs that a model wrote, run with their tests in a locked-down process of their own.

A program passes only if it comes to its end: the child then writes a word that it was told. What a program may do is
limited by the kernel (time, memory, sizes of files, processes; where allowed, a network of its own that leads nowhere)
and by an audit hook of Python (writing outside of its folder, other programs, sockets, foreign code). The hook keeps
mistakes and mischief of models in; it is no wall against somebody who attacks CPython itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calm_graph.errors import EvaluationError

Verdict = Literal["passed", "failed", "timeout", "refused"]

TIMEOUT_S = 10.0
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
OUTPUT_CHARS = 2_000
_PIPE_BYTES = 1 << 16
"""What a pipe holds at most."""

_CHILD = Path(__file__).with_name("sandbox_child.py")
_CPU_SIGNALS = (signal.SIGXCPU, signal.SIGKILL) if hasattr(signal, "SIGXCPU") else ()


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a program.

    Args:
        verdict: `passed`: it came to its end; `failed`: it did not; `timeout`: it took too long; `refused`: it did not
            come to its end after it tried what it may not.
        output: The end of what it wrote and of its error.
        reason: What it tried, if it was refused.
    """

    verdict: Verdict
    output: str
    reason: str = ""


def run_program(program: str, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> Ran:
    """Run a Python program.

    Args:
        program: Its text, with the tests that it must come through.
        timeout_s: Of the clock on the wall, and of the processor.
        memory_bytes: What it may take.

    Returns:
        What came of it.

    Raises:
        EvaluationError: This system cannot limit processes.
    """
    if os.name != "posix":
        raise EvaluationError("pass@k runs programs of a model, which needs Linux or macOS to lock them down")
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="calm-graph-program-") as name:
        folder = Path(name)
        (folder / "work").mkdir()
        source, output = folder / "program.py", folder / "output"
        source.write_text(program, encoding="utf-8", errors="replace")
        reader, writer = os.pipe()
        try:
            with output.open("wb") as file:
                child = subprocess.Popen(
                    [sys.executable, "-I", *map(str, [_CHILD, source, writer, timeout_s, memory_bytes, FILE_BYTES])],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=folder / "work",
                    env={},
                    pass_fds=[writer],
                    start_new_session=True,
                )
            os.close(writer)
            writer = -1
            is_late = _wait(child, word, timeout_s)
            said = os.read(reader, _PIPE_BYTES).decode(errors="replace") if not is_late else ""
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        text = output.read_bytes()[-4 * OUTPUT_CHARS :].decode(errors="replace")[-OUTPUT_CHARS:]
    refused = [line.removeprefix("refused ") for line in said.splitlines() if line.startswith("refused ")]
    if is_late or -child.returncode in _CPU_SIGNALS:
        return Ran("timeout", text)
    if child.returncode == 0 and word in said.splitlines():
        return Ran("passed", text)
    return Ran("refused", text, refused[0]) if refused else Ran("failed", text)


def passes(program: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Tell whether a program comes to its end without an error."""
    return run_program(program, timeout_s=timeout_s).verdict == "passed"


def _wait(child: subprocess.Popen[bytes], word: str, timeout_s: float) -> bool:
    """Tell the child its word and wait for its end; tells whether it had to be killed."""
    try:
        with contextlib.suppress(BrokenPipeError):
            assert child.stdin is not None
            child.stdin.write(word.encode())
            child.stdin.close()
        child.wait(timeout_s)
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        # The whole session: whatever it may have started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait()
