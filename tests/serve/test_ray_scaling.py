"""A deployment that changes while it is asked: it scales with the load, to zero too, and is replaced without a loss."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import ray
from ray import serve
from ray.serve.config import HTTPOptions

from calm_graph.model.composed import ComposedModel
from calm_graph.serve.ray_app import build_app
from calm_graph.serve.settings import ServeSettings
from examples.arithmetic.measure import answers

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
TRAINED = Path(__file__).parents[2] / "examples" / "arithmetic" / "trained"
APP = "changing"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"worker_niceness": 0},
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def deploy(**changes: object) -> None:
    settings = {
        "checkpoints": [str(TRAINED)],
        "num_cpus": 0.5,
        "drain_s": 20.0,
        "engine": {"max_running": 4},
        **changes,
    }
    serve.run(build_app(ServeSettings.parse(settings)), name=APP, route_prefix="/")


def num_engines() -> int:
    states = serve.status().applications[APP].deployments["engine"].replica_states
    return sum(count for state, count in states.items() if state != "STOPPING")


def wait_until(is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait, and return how long it took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.2)
    return time.monotonic() - began


def ask(address: str, prompt: str = "12+7=", **fields: object) -> str:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_an_idle_application_goes_to_zero_and_a_request_brings_it_back(address: str) -> None:
    scaling = {
        "min_replicas": 0,
        "initial_replicas": 1,
        "max_replicas": 1,
        "downscale_delay_s": 2,
        "upscale_delay_s": 0,
    }
    scaling |= {"metrics_interval_s": 0.5, "look_back_period_s": 1, "downscale_to_zero_delay_s": 2}
    deploy(num_replicas=None, autoscaling=scaling)
    assert ask(address) == "19"
    took_s = wait_until(lambda: num_engines() == 0, 90, "an engine is left though nobody asks")
    assert httpx.get(f"{address}/v1/models").status_code == 200, "what needs no engine is answered without one"
    assert "calm_graph_num_requests_running" in httpx.get(f"{address}/metrics", timeout=30).text
    began = time.monotonic()
    assert ask(address) == "19"
    print(f"to zero after {took_s:.1f} s; back and answered after {time.monotonic() - began:.1f} s")
    assert num_engines() == 1


def test_load_brings_a_second_engine(address: str) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1}
    scaling |= {"metrics_interval_s": 0.5, "look_back_period_s": 2}
    deploy(num_replicas=None, autoscaling=scaling)
    ends = threading.Event()

    def go_on() -> int:
        count = 0
        while not ends.is_set():
            ask(address, max_tokens=100, ignore_eos=True)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(go_on) for _ in range(8)]
        try:
            took_s = wait_until(lambda: num_engines() == 2, 90, "load brings no second engine")
        finally:
            ends.set()
        assert sum(each.result() for each in asked) >= 8
    print(f"a second engine after {took_s:.1f} s")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another version of the checkpoint under the same name, which answers otherwise: its attachments write nothing."""
    model = ComposedModel.from_pretrained(TRAINED)
    for name, parameter in model.attachments.named_parameters():
        if name.endswith("output.weight"):
            parameter.data.zero_()
    model.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("what", ["checkpoint", "limit"])
def test_a_changed_deployment_replaces_the_old_one_without_a_loss(address: str, other: Path, what: str) -> None:
    prompt = "yos-pen="  # prices that the anchor alone does not know
    deploy(num_replicas=1)
    before = ask(address, prompt)
    found: list[str] = []
    ends = threading.Event()

    def go_on() -> None:
        while not ends.is_set() or len(found) < 100:
            found.append(ask(address, prompt))

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(go_on) for _ in range(4)]
        try:
            if what == "checkpoint":
                deploy(num_replicas=1, checkpoints=[str(other)])
            else:
                deploy(num_replicas=1, http={"max_new_tokens": 16})
        finally:
            ends.set()
        for each in asked:
            each.result()
    print(f"{len(found)} requests meanwhile, {found.count(before)} answered by the old deployment")
    after = ask(address, prompt)
    assert set(found) <= {before, after} and len(found) >= 100
    if what == "checkpoint":
        model = ComposedModel.from_pretrained(other)
        assert after != before and after == answers(model, model.tokenizer, [prompt], max_new_tokens=8)[0]
    else:
        assert after == before
        refused = httpx.post(f"{address}/v1/completions", json={"prompt": prompt, "max_tokens": 17})
        assert refused.status_code == 400 and "allows 16" in refused.text


def test_streams_under_way_end_whole_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "calm_graph", "serve", str(TRAINED), "--num-cpus", "0.5", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, 120, "it does not start")
        assert process.poll() is None, log.read_text()
        url, begun = f"http://127.0.0.1:{port}", threading.Barrier(5)

        def stream() -> list[str]:
            body = {"prompt": "12+7=", "max_tokens": 110, "stream": True, "ignore_eos": True, "temperature": 0}
            lines: list[str] = []
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines += [line] if line else []
                    if line and len(lines) == 1:
                        begun.wait(60)
            return lines

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(stream) for _ in range(4)]
            begun.wait(60)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            found = [each.result() for each in asked]
        assert process.wait(60) == 0, log.read_text()
        print(f"ended {time.monotonic() - began:.1f} s after the signal")
    finally:
        if process.poll() is None:
            process.kill()
    assert "no more requests; answering those under way" in log.read_text()
    for lines in found:
        assert lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in lines[-2]
        assert lines == found[0] or len(lines) == len(found[0])
