"""An augmenter's service gives the states that the model gives here, to those who may ask, and nothing else."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.numpy import load

from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.augmenters.wire import Wire, pack, unpack
from calm_graph.errors import DeclarationError, OverloadedError, ServingError
from calm_graph.serve.augmenter_model import AugmenterModel, load_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings
from calm_graph.serve.batching import Batcher
from registry import ModelCard
from registry.weights import identity, load_body
from tests.augmenters.exports import Exports
from tests.model.pico import Zoo
from tests.serve.augmenters import ServedAugmenter, serving_augmenter

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]
LAYERS = (0, 2)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    zoo = Zoo(tmp_path_factory.mktemp("zoo"))
    return zoo.registry.get(zoo.add("other", "gemma3_text", tokenizer="spaces", seed=3).name)


@pytest.fixture(scope="module")
def model(card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> AugmenterModel:
    folder = tmp_path_factory.mktemp("cards")
    (folder / "other.json").write_text(card.model_dump_json(include={"name", "source"}))
    return load_augmenter(AugmenterSettings(name="other", layers=LAYERS, registries=(folder,)))


@pytest.fixture(scope="module")
def served(model: AugmenterModel) -> Iterator[ServedAugmenter]:
    with serving_augmenter(model, max_tokens=300) as served:
        yield served


@pytest.fixture(scope="module")
def expected(card: ModelCard) -> dict[int, np.ndarray]:
    """Layer -> the states of each row read alone, one row after the other."""
    backend = TorchBackend(load_body(card, 3), name="other", context_length=None)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    for row in ROWS:
        ids = torch.tensor([row])
        real = torch.ones_like(ids, dtype=torch.bool)
        states = backend.read_tokens(ids, real, known_at_BS=ids, taps=frozenset(LAYERS), writes={})
        for layer in LAYERS:
            found[layer].append(states[layer][0])
    return {layer: torch.cat(states).numpy() for layer, states in found.items()}


def ask(served: ServedAugmenter, **changes: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/states", json={"token_ids": ROWS, "layers": [*LAYERS], **changes})


def test_the_states_are_the_models(served: ServedAugmenter, expected: dict[int, np.ndarray]) -> None:
    response = ask(served)
    assert response.status_code == 200 and response.headers["x-request-id"]
    states = load(response.content)
    assert states.keys() == {"state.0", "state.2"}
    for layer in LAYERS:
        np.testing.assert_allclose(states[f"state.{layer}"], expected[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_fewer_bits_stay_within_their_bounds(
    served: ServedAugmenter, expected: dict[int, np.ndarray], wire: Wire
) -> None:
    body = ask(served, wire=wire).content
    found = unpack(body, layers=LAYERS, num_tokens=12, hidden_size=16, wire=wire)
    for layer in LAYERS:
        largest = np.abs(expected[layer]).max(axis=1, keepdims=True)
        bound = largest / 254 if wire == "int8" else np.abs(expected[layer]) * 2**-11 + largest * 2**-24
        assert (np.abs(found[layer] - expected[layer]) <= bound + 1e-5).all()


def test_states_beyond_the_range_of_float16_travel() -> None:
    states = {1: np.array([[3e6, -1e9, 7.0], [0.0, 0.0, 0.0]], np.float32)}
    for wire in ("float16", "int8"):
        (found,) = unpack(pack(states, wire), layers=(1,), num_tokens=2, hidden_size=3, wire=wire).values()
        assert (np.abs(found - states[1]) <= [[1e9 / 254]]).all() and not found[1].any()


def test_what_the_service_says_of_itself(served: ServedAugmenter, card: ModelCard) -> None:
    facts = httpx.get(f"{served.url}/v1/augmenter").json()
    assert facts["layers"] == [0, 2] and facts["reading"] == "prompt" and facts["name"] == "other"
    assert (facts["num_layers"], facts["hidden_size"], facts["context_length"]) == (card.num_layers, 16, 192)
    assert facts["fingerprint"].startswith("sha256:") and "source" not in facts
    files = httpx.get(f"{served.url}/v1/tokenizer").json()["files"]
    assert files["tokenizer.json"] == (Path(card.location) / "tokenizer.json").read_text()
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert "calm_graph_augmenter_runs_total" in httpx.get(f"{served.url}/metrics").text


@pytest.mark.parametrize(
    ("changes", "status", "code", "message"),
    [
        ({"layers": [1]}, 400, "layer_not_allowed", "layers: got 1, but this service gives 0, 2"),
        ({"layers": [0, 0]}, 400, "invalid_value", "layers: has one twice"),
        ({"layers": []}, 400, "invalid_value", "layers: "),
        ({"token_ids": [[1, 448]]}, 400, "invalid_value", r"token_ids\[0\]: got 448, but tokens are 0..447"),
        ({"token_ids": [[1], [-1]]}, 400, "invalid_value", r"token_ids\[1\]: got -1"),
        ({"token_ids": [[]]}, 400, "invalid_value", "is empty"),
        ({"token_ids": [[1] * 193]}, 400, "context_length_exceeded", "193 tokens, but the context of 'other' is 192"),
        ({"token_ids": [[1] * 190] * 2}, 400, "invalid_value", "got 380 tokens, but this server allows 300"),
        ({"token_ids": [[1]] * 300}, 400, "invalid_value", "got 300 rows, but this server allows 256"),
        ({"token_ids": [["a"]]}, 400, "invalid_type", "token_ids"),
        ({"wire": "float64"}, 400, "invalid_value", "wire"),
        ({"weights": True}, 400, "unknown_parameter", "weights"),
        ({"fingerprint": "sha256:0"}, 409, "fingerprint_mismatch", "got 'sha256:0', but this service runs sha256:"),
    ],
)
def test_what_is_not_allowed_is_refused(
    served: ServedAugmenter, changes: dict[str, object], status: int, code: str, message: str
) -> None:
    response = ask(served, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert re.search(message, error["message"])


def test_a_large_body_is_refused(model: AugmenterModel) -> None:
    with serving_augmenter(model, max_body_bytes=100) as served:
        assert ask(served, token_ids=[[1] * 100]).json()["error"]["code"] == "request_too_large"


def test_only_those_with_a_key_may_ask(model: AugmenterModel, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ann:secret\n")
    with serving_augmenter(model, api_keys_file=tmp_path / "keys") as served:
        for path in ("/v1/augmenter", "/v1/tokenizer", "/metrics"):
            assert httpx.get(served.url + path).status_code == 401
        assert ask(served).json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{served.url}/health").status_code == 200
        header = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{served.url}/v1/augmenter", headers=header).status_code == 200


class Counted:
    """Stands where the model does, and takes its time."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, tuple[int, ...]]] = []

    def read(self, rows: list[list[int]], layers: list[int]) -> list[dict[int, np.ndarray]]:
        self.runs.append((len(rows), tuple(layers)))
        if rows[0][0] == 99:
            raise RuntimeError("broken")
        return [{layer: np.full((len(row), 1), 10 * layer + row[0]) for layer in layers} for row in rows]


def batcher(model: Counted, **changes: object) -> Batcher:
    settings = {"max_batch_tokens": 8, "max_wait_s": 0.05, "max_waiting": 10, "metrics": CollectorRegistry(), **changes}
    return Batcher(model, **settings)  # type: ignore[arg-type]


def test_requests_that_come_together_run_together() -> None:
    model = Counted()

    async def ask_all() -> list[list[dict[int, np.ndarray]]]:
        together = batcher(model)
        return await asyncio.gather(
            together.read([[1, 1], [2]], (0,)),
            together.read([[3, 3]], (2, 0)),
            together.read([[4, 4, 4, 4]], (2,)),  # does not fit with the others
        )

    first, second, third = asyncio.run(ask_all())
    assert model.runs == [(3, (0, 2)), (1, (2,))]
    assert [row[0].tolist() for row in first] == [[[1], [1]], [[2]]] and first[0].keys() == {0}
    assert second[0][2].tolist() == [[23], [23]] and third[0][2][0] == 24


def test_a_broken_run_fails_its_requests_alone_and_a_full_queue_refuses() -> None:
    async def ask_all() -> list[object]:
        one = batcher(Counted(), max_batch_tokens=1, max_waiting=2)
        asked = [one.read([[id]], (0,)) for id in (99, 1, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    broken, fine, refused = asyncio.run(ask_all())
    assert isinstance(broken, ServingError) and "RuntimeError" in str(broken) and "broken" not in str(broken)
    assert isinstance(fine, list) and isinstance(refused, OverloadedError)


def test_settings_that_do_not_fit_the_model_are_refused(card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(card.model_dump_json(include={"name", "source"}))
    for layers, message in (((9,), r"layers: got 9, but 'other' has layers 0\.\."), ((), "layers: is empty")):
        with pytest.raises(DeclarationError, match=message):
            load_augmenter(AugmenterSettings(name="other", layers=layers, registries=(tmp_path,)))


def test_images_are_not_served(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    eye = zoo.add("eye", "vit", seed=5)
    (tmp_path / "eye.json").write_text(eye.model_dump_json(include={"name", "source", "modality"}))
    with pytest.raises(DeclarationError, match="got 'eye', a model of image, but"):
        load_augmenter(AugmenterSettings(name="eye", layers=(0,), registries=(tmp_path,)))


WITHOUT_TORCH = """
import asyncio, sys
import httpx2 as httpx
from calm_graph.cli import main
from calm_graph.cli.serve_augmenter import read_settings
from calm_graph.serve import run
from calm_graph.serve.augmenter_app import make_augmenter_app
from calm_graph.serve.augmenter_model import load_augmenter
from calm_graph.serve.augmenter_settings import AugmenterSettings

settings = AugmenterSettings(name="other", onnx=sys.argv[1], num_cpus=1)
app = make_augmenter_app(load_augmenter(settings), settings)

async def ask():
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        facts = (await client.get("/v1/augmenter")).json()
        body = {"token_ids": [[5, 6, 7, 8, 9, 10, 11], [12, 13]], "layers": [0, 1]}
        return facts, (await client.post("/v1/states", json=body)).content

facts, body = asyncio.run(ask())
open(sys.argv[2], "wb").write(body)
print(facts["fingerprint"], sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "onnx"}))
"""


def test_a_service_of_an_export_never_imports_torch(onnx_exports: Exports, onnx_zoo: Zoo, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    export = onnx_exports.folder("other")
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(export), str(tmp_path / "states")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    card = onnx_zoo.registry.get("other")
    assert done.stdout.strip() == f"{identity(card)} []"
    backend = TorchBackend(load_body(card, 2), name="other", context_length=None)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    states = backend.read_tokens(ids, ids > 0, known_at_BS=ids, taps=frozenset((0, 1)), writes={})
    found = load((tmp_path / "states").read_bytes())
    for layer in (0, 1):
        np.testing.assert_allclose(found[f"state.{layer}"][:7], states[layer][0].numpy(), atol=1e-4, rtol=1e-4)
