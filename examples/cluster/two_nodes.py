"""A Ray cluster of two nodes on this machine, a training job submitted to it, and both nodes stopped again.

What a cluster changes is tried here before there is one: the job is submitted over HTTP, its driver runs on the head,
its workers are processes of two nodes, and they meet in a folder that all of them see.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from examples.arithmetic.compositions import garden
from examples.arithmetic.data import Split
from examples.arithmetic.recipe import RECIPE, training_rows

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
START_S = 120.0
STOP_S = 30.0


def main() -> int:
    """Train the demo's garden composition on two nodes.

    Returns:
        The exit code of the job.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.cluster.two_nodes", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/two-nodes"), help="gets the data and the run")
    parser.add_argument("--num-workers", type=int, default=2, help="0 trains inside the job's own process")
    parser.add_argument("--max-steps", type=int, default=60)
    options = parser.parse_args()
    out = options.out.absolute()
    write_inputs(out, num_rows=64 * options.max_steps)
    train = ["calm_graph", "train", str(out / "garden.json"), "--data", str(out / "train.jsonl")]
    train += ["--eval", str(out / "dev.jsonl"), "--out", str(out / "run"), "--resume"]
    train += ["--max-steps", str(options.max_steps), "--batch-size", "64", "--device", "cpu"]
    train += ["--learning-rate", "2e-3", "--num-workers", str(options.num_workers), "--set", "warmup_steps=20"]
    with two_nodes() as (address, dashboard):
        print(f"two nodes at {address}; their dashboard: {dashboard}", flush=True)
        return submit(dashboard, [sys.executable, "-m", *train])


def write_inputs(out: Path, *, num_rows: int) -> None:
    """Write the composition and rows as files, which every node reads.

    Args:
        out: A folder that all nodes see.
        num_rows: To train on.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "garden.json").write_text(garden.model_dump_json(indent=2) + "\n", "utf-8")
    parts: tuple[tuple[str, int, Split], ...] = (("train", num_rows, "tune"), ("dev", 200, "dev"))
    for name, count, split in parts:
        rows = training_rows(["garden"], steps=1 + count // RECIPE.batch_size, seed=0, split=split)[:count]
        lines = [json.dumps({"prompt": row.prompt, "completion": row.completion}) for row in rows]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


@contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """Start a head and a second node, of one CPU each, and stop both at the end.

    Yields:
        The cluster's address, and the dashboard's, which takes jobs.
    """
    port, dashboard_port = free_port(), free_port()
    address, dashboard = f"{HOST}:{port}", f"http://{HOST}:{dashboard_port}"
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-host={HOST}"]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, ExitStack() as nodes:
        # A folder of its own, so that no other cluster of this machine is taken for this one.
        nodes.enter_context(node(*head, f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"))
        wait_for_nodes(dashboard, 1)
        nodes.enter_context(node(f"--address={address}"))
        wait_for_nodes(dashboard, 2)
        yield address, dashboard


@contextmanager
def node(*arguments: str) -> Iterator[None]:
    """Start one node and stop it at the end; `ray stop` would stop every cluster of this machine."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0"]
    command += [f"--node-ip-address={HOST}", f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
    process = subprocess.Popen(
        [*command, *arguments], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def submit(dashboard: str, command: list[str]) -> int:
    """Run `ray job submit`, which shows the job's output, and return its exit code."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address={dashboard}", "--"]
    return subprocess.run([*ray, *command], env=environment(), check=False).returncode


@cache
def environment() -> dict[str, str]:
    """Return what the nodes and the one who submits have in common."""
    ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Whoever knows the token may run programs on the cluster; all other users of this machine may not.
    ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Workers import the project from here, installed or not.
    return ours | {"PYTHONPATH": os.pathsep.join([str(ROOT), ours.get("PYTHONPATH", "")])}


def wait_for_nodes(dashboard: str, count: int) -> None:
    """Wait until so many nodes have joined.

    Raises:
        TimeoutError: They have not within two minutes.
    """
    question = urllib.request.Request(f"{dashboard}/api/v0/nodes")
    question.add_header("Authorization", f"Bearer {environment()['RAY_AUTH_TOKEN']}")
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(question, timeout=10) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except (OSError, KeyError):  # not up yet
            nodes = []
        if sum(node["state"] == "ALIVE" for node in nodes) >= count:
            return
        time.sleep(0.5)
    raise TimeoutError(f"{dashboard}: {count} nodes have not joined within {START_S:.0f} s")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


if __name__ == "__main__":
    raise SystemExit(main())
