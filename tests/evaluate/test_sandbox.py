"""Programs of a model pass only by coming to their end, and can do no harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from calm_graph.evaluate.measures.sandbox import FILE_BYTES, OUTPUT_CHARS, run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs limits of processes")


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x + 1\nassert f(1) == 2",
        "import math, re, collections, itertools, heapq, typing, datetime, random, string, threading, statistics",
        "open('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'\nimport os\nos.remove('a.txt')",
        "assert __name__ == '__main__'",
    ],
)
def test_right_programs_pass(program: str) -> None:
    assert run_program(program).verdict == "passed", run_program(program).output


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "import sys\nsys.exit(0)\nassert False",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "x = [0] * (10 ** 10)",
        "open('a', 'wb').write(b'0' * (1 << 26))",
        "while True: print('x' * 1_000_000)",
        "input()",
        "import os\nos.abort()",
    ],
)
def test_others_do_not(program: str) -> None:
    found = run_program(program, timeout_s=5)
    assert found.verdict == "failed"
    assert len(found.output) <= OUTPUT_CHARS


@pytest.mark.parametrize(
    "program, reason",
    [
        ("import os\nwhile True: os.fork()", "os.fork"),
        ("import os\nopen('{home}/evil', 'w')", "to write"),
        ("import os\nos.open('{home}/evil', os.O_CREAT | os.O_WRONLY)", "to write"),
        ("import os\nos.chdir('{home}')\nopen('evil', 'w')", "to write"),
        ("import os\nos.mkdir('{home}/evil')", "os.mkdir"),
        ("import os\nos.symlink('{home}', 'way')\nopen('way/evil', 'w')", "os.symlink"),
        ("import os\nos.rename('{home}/kept', '{home}/evil')", "os.rename"),
        ("import socket\nsocket.socket()", "socket"),
        ("import _socket\n_socket.socket()", "socket"),
        ("import os\nos.system('touch {home}/evil')", "os.system"),
        ("import subprocess", "_posixsubprocess"),
        ("import ctypes", "ctypes"),
        ("import os\nos.kill(os.getppid(), 9)", "os.kill"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "resource"),
        ("try:\n    open('{home}/evil', 'w')\nexcept Exception:\n    pass\nassert False", "to write"),
    ],
)
def test_what_would_do_harm_is_refused(program: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    found = run_program(program.replace("{home}", str(tmp_path)), timeout_s=5)
    assert found.verdict == "refused" and reason in found.reason
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_what_takes_too_long_is_ended(program: str) -> None:
    began = time.monotonic()
    assert run_program(program, timeout_s=0.7).verdict == "timeout"
    assert time.monotonic() - began < 5


def test_the_process_has_limits_of_its_own_and_no_variables() -> None:
    program = f"""
import os
assert 'HOME' not in os.environ and os.listdir() == []
file = open('a', 'wb', buffering=0)
assert file.write(b'0' * {FILE_BYTES}) == {FILE_BYTES}
try:
    file.write(b'0')
except OSError:
    pass
else:
    assert False
"""
    found = run_program(program)
    assert found.verdict == "passed", found.output


def test_threads_of_a_program_do_not_keep_it() -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    began = time.monotonic()
    assert run_program(program).verdict == "passed"
    assert run_program(f"{program}assert False").verdict == "failed"
    assert time.monotonic() - began < 5
