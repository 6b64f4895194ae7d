"""Frozen models in shards (FSDP2): two processes on this machine compute what one does, and each holds about half."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import InputError
from calm_graph.model.build import build_model
from registry import ModelCard
from registry.errors import WeightsError
from registry.weights import load_causal_lm
from tests.model.pico import Zoo

ROOT = Path(__file__).parents[2]
# All but llama tie the head to the embeddings.
ANCHORS = ("llama", "gemma3_text", "gpt2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("sharding") / "models")
    for seed, architecture in enumerate(ANCHORS):
        zoo.add(architecture, architecture, seed=seed)
    zoo.add("reading", "qwen2", tokenizer="bytes", seed=10)
    zoo.add("other", "bloom", tokenizer="spaces", seed=11)
    return zoo


def run_two(folder: Path, *names: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.model.sharding_process", str(folder), *names],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads(Path(f"{folder}.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.timeout(400)
def test_two_processes_compute_what_one_does(models: Zoo) -> None:
    ranks = run_two(models.folder, *ANCHORS)
    for found in (rank[name] for rank in ranks for name in ANCHORS):
        assert found["loss_difference"] < 1e-5 * found["loss"]
        assert found["difference"] < 1e-5
        assert found["trainable"] == found["num_gradients"] > 0
        assert found["differing_files"] == []
    for name in ANCHORS:
        for part in ("anchor", "run:inner", "run:other"):
            held = [rank[name]["held"][part] for rank in ranks]
            assert sum(held) == pytest.approx(1.0)
            assert max(held) < 0.6
        assert ranks[0][name]["tied"] == [name != "llama"] * 2


def test_one_process_alone_is_told_how_to_start_several(models: Zoo) -> None:
    composition = Composition(name="alone", anchor="llama", augmenters=[Augmenter("other", attach=every(2))])
    with pytest.raises(InputError, match="sharding: got 'fsdp', but this process is not one of several; start it with"):
        build_model(composition, registry=models.registry, sharding="fsdp")


def test_a_gguf_file_cannot_be_read_by_shards(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.registry.gguf_files import write_gguf
    from tests.registry.pico import make_model

    file = write_gguf(make_model("llama", head=True), tmp_path / "model.gguf")
    with pytest.raises(WeightsError, match="is read whole, not by shards; save it as safetensors"):
        load_causal_lm(ModelCard(name="file", source=f"gguf:{file}"), num_shards=2)
