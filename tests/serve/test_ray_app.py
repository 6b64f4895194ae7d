"""Applications on a real Ray cluster: engines of which one is killed again and again, an augmenter somewhere else."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
import ray
from ray import serve
from ray.serve.config import HTTPOptions

from calm_graph import Augmenter, every
from calm_graph.errors import DeclarationError
from calm_graph.serve.augmenter_ray import build_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings
from calm_graph.serve.ray_app import build_app
from calm_graph.serve.settings import ServeSettings
from tests.generate.test_engine import TEXTS, alone
from tests.model.pico import Zoo

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

NUM_TOKENS = 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A composition, and what it answers to each prompt."""
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    model = zoo.compose(Augmenter("other", attach=every(2)), name="pico")
    model.save_pretrained(zoo.folder / "pico")
    model.generation_config.eos_token_id = None
    answers = {
        prompt: model.tokenizer.decode(alone(model, prompt, NUM_TOKENS), skip_special_tokens=True)
        for prompt in TEXTS[:6]
    }
    return zoo.folder / "pico", answers


@pytest.fixture(scope="module")
def address(checkpoint: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # before the cluster, whose processes have it
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    settings = ServeSettings(checkpoints=(str(checkpoint[0]),), num_replicas=2, engine={"max_running": 4})
    serve.run(build_app(settings), name="test", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    patch.undo()


def engines() -> list[int]:
    """Process ids of the engines of this test's cluster."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "ray::ServeReplica:test:engine" in line]


async def ask(address: str, prompt: str) -> str:
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
    text = ""
    async with client:
        stream = await client.completions.create(
            model="pico",
            prompt=prompt,
            max_tokens=NUM_TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            text += chunk.choices[0].text if chunk.choices else ""
    return text


def test_answers_are_those_of_the_model_while_engines_are_killed(
    address: str, checkpoint: tuple[Path, dict[str, str]]
) -> None:
    expected = checkpoint[1]
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(1.5) and len(killed) < 3:
            alive = [pid for pid in engines() if pid not in killed]
            if len(alive) > 1:
                os.kill(alive[0], signal.SIGKILL)
                killed.append(alive[0])

    async def ask_all() -> list[tuple[str, str]]:
        room = asyncio.Semaphore(8)
        found = []

        async def one(prompt: str) -> None:
            async with room:
                found.append((prompt, await ask(address, prompt)))

        rounds = 0
        while rounds < 2 or len(killed) < 2:
            await asyncio.gather(*(one(prompt) for prompt in [*expected] * 4))
            rounds += 1
        return found

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = asyncio.run(ask_all())
    finally:
        done.set()
        killer.join()
    assert len(killed) >= 2
    assert {(prompt, text) for prompt, text in found} == set(expected.items())


def test_errors_are_openais_and_the_metrics_are_there(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["pico", "anchor"]
    with pytest.raises(openai.NotFoundError, match="picco"):
        client.completions.create(model="picco", prompt="so")
    with pytest.raises(openai.BadRequestError, match=r"the context of .pico. is 192"):
        client.completions.create(model="pico", prompt="so " * 1000)
    with pytest.raises(openai.BadRequestError, match="othr"):
        client.completions.create(model="pico", prompt="so", extra_body={"augmenters": {"othr": 0}})
    assert httpx.get(f"{address}/ready").status_code == 200
    assert "calm_graph_generation_tokens_total" in httpx.get(f"{address}/metrics").text


def test_a_client_that_leaves_ends_its_answer(address: str) -> None:
    body = {"model": "pico", "prompt": "so", "max_tokens": 180, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 20
    while 'finished_reason="cancelled"' not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < deadline, "the engine goes on with what nobody hears"


def test_a_composition_reads_an_augmenter_of_another_deployment(address: str, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("anchor", "llama", tokenizer="bytes", seed=1)
    zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3)
    model = zoo.compose(Augmenter("other", attach=every(2), reading="prompt"), name="pico")
    model.save_pretrained(tmp_path / "pico")
    model.generation_config.eos_token_id = None
    expected = {
        prompt: model.tokenizer.decode(alone(model, prompt, 12), skip_special_tokens=True) for prompt in TEXTS[:3]
    }
    (tmp_path / "cards").mkdir()
    card = zoo.registry.get("other").model_dump_json(include={"name", "source"})
    (tmp_path / "cards" / "other.json").write_text(card)
    (tmp_path / "keys").write_text("pico:geheim\n")
    layers = tuple(planned.augmenter_layer for planned in model.plan.attachments)
    owner = AugmenterSettings(
        name="other",
        layers=layers,
        registries=(tmp_path / "cards",),
        api_keys_file=tmp_path / "keys",
        num_cpus=0.5,
    )
    serve.run(build_augmenter(owner), name="augmenter-other", route_prefix="/augmenters/other")
    url = f"{address}/augmenters/other"
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/augmenter").status_code == 401
    # The user has the checkpoint, a card with the address and the place of the key, and no weights of the augmenter.
    (zoo.folder / "other" / "model.safetensors").unlink()
    (tmp_path / "key").write_text("geheim")
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "other.json").write_text(
        f'{{"name": "other", "source": "remote:{url}", "remote": {{"api_key_file": "{tmp_path / "key"}"}}}}'
    )
    user = ServeSettings(checkpoints=(str(tmp_path / "pico"),), registries=(str(tmp_path / "user"),), num_cpus=0.5)
    serve.run(build_app(user), name="pico", route_prefix="/reader")
    reader = f"{address}/reader/v1/completions"
    for prompt, text in expected.items():
        body = {"model": "pico", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        assert httpx.post(reader, json=body, timeout=60).json()["choices"][0]["text"] == text
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer geheim"}).text
    assert "calm_graph_augmenter_requests_total 3.0" in metrics
    serve.delete("augmenter-other")
    answer = httpx.post(reader, json=body | {"prompt": "new"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "augmenter_unavailable")
    serve.delete("pico")


def test_replicas_and_autoscaling_exclude_each_other(checkpoint: tuple[Path, dict[str, str]]) -> None:
    folder = str(checkpoint[0])
    with pytest.raises(DeclarationError, match="one of them decides"):
        ServeSettings.parse({"checkpoints": ["a"], "num_replicas": 2, "autoscaling": {"max_replicas": 3}})
    scaled = ServeSettings(checkpoints=(folder,), num_replicas=None, autoscaling={"min_replicas": 0, "max_replicas": 2})
    assert build_app(scaled) is not None
    assert build_app({"checkpoints": [folder], "engine": {"max_running": 2}}) is not None
    with pytest.raises(DeclarationError, match=r"settings.num_replica: .*did you mean 'num_replicas'"):
        build_app({"checkpoints": ["a"], "num_replica": 2})
