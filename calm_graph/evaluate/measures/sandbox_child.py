"""What runs inside the locked-down process: limits, then the audit hook, then the program. It imports nothing of us."""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import resource
import sys
import traceback
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of <sched.h>

# Audit events of CPython (docs.python.org/3/library/audit_events.html) by their first words.
_REFUSED = (
    *("socket.", "http.client", "urllib.Request", "ftplib.", "smtplib.", "syslog.", "webbrowser."),
    *(
        "subprocess.",
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "pty.",
    ),
    *("os.kill", "os.killpg", "signal.pthread_kill", "resource.", "ctypes.", "sqlite3.", "cpython.run_"),
    *("gc.get_", "sys.setprofile", "sys.settrace", "os.setxattr", "os.removexattr", "os.lockf"),
)
_PATHS = (
    *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.mkfifo", "os.mknod"),
    *("os.truncate", "os.chmod", "os.chown", "os.utime", "os.chflags", "shutil."),
)
_FOREIGN = {"ctypes", "_ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "readline"}


def main() -> None:
    """Run the program that the arguments name."""
    source, report, timeout_s, memory_bytes, file_bytes = sys.argv[1:]
    word = sys.stdin.read()
    with open(source, encoding="utf-8") as file:
        program = file.read()
    fd = int(report)
    _limit(float(timeout_s), int(memory_bytes), int(file_bytes))
    _leave_network()
    sys.argv[:] = ["program.py"]
    sys.stdin = io.StringIO()
    for name in _FOREIGN:
        sys.modules.pop(name, None)
    sys.addaudithook(_hook(fd, os.getcwd()))
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__", "__builtins__": builtins})
    except SystemExit as error:  # also with code 0: it did not come to its end
        os.write(2, f"SystemExit: {error.code}\n".encode())
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # not by the usual way, which would wait for its threads
    os.write(fd, f"{word}\n".encode())
    sys.stdout.flush()
    os._exit(0)


def _limit(timeout_s: float, memory_bytes: int, file_bytes: int) -> None:
    seconds = int(timeout_s) + 1
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: 64 << 20,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS knows some of them by name only
            continue


def _leave_network() -> None:
    """Go where there is no network, if the kernel lets us; the audit hook refuses sockets in any case."""
    try:
        unshare = ctypes.CDLL(None).unshare
    except (AttributeError, OSError):
        return
    if unshare(_NEW_NETWORK) != 0:
        unshare(_NEW_USER | _NEW_NETWORK)


def _hook(fd: int, folder: str) -> Any:
    inside = os.path.realpath(folder) + os.sep
    write, realpath, fsdecode = os.write, os.path.realpath, os.fsdecode

    def refuse(what: str) -> None:
        write(fd, f"refused {what}\n".encode(errors="replace")[:300])
        raise PermissionError(f"a program that is evaluated may not: {what}")

    def is_outside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return False
        return not (realpath(fsdecode(path)) + os.sep).startswith(inside)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITING)
            if writes and is_outside(path):
                refuse(f"open {path!r} to write")
        elif event == "import":
            if args[0] in _FOREIGN:
                refuse(f"import {args[0]}")
        elif event.startswith(_REFUSED):
            refuse(event)
        elif event.startswith(_PATHS) and any(is_outside(arg) for arg in args[:2] if isinstance(arg, str | bytes)):
            refuse(f"{event} outside of its folder")

    return hook


if __name__ == "__main__":
    main()
