"""A composition and its augmenter as two applications of one Ray cluster; only states cross between them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import ray
from ray import serve
from ray.serve.config import HTTPOptions

from calm_graph import Augmenter, every
from calm_graph.serve.augmenter_ray import build_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings
from calm_graph.serve.ray_app import build_app
from calm_graph.serve.settings import ServeSettings
from tests.generate.test_engine import TEXTS, alone
from tests.model.pico import Zoo

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # before the cluster, whose processes have it
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
    patch.undo()


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
    serve.run(build_app(user), name="pico", route_prefix="/")
    for prompt, text in expected.items():
        body = {"model": "pico", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"] == text
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer geheim"}).text
    assert "calm_graph_augmenter_requests_total 3.0" in metrics
    serve.delete("augmenter-other")
    answer = httpx.post(f"{address}/v1/completions", json=body | {"prompt": "new"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "augmenter_unavailable")
