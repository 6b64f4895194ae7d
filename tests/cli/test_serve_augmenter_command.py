"""`calm-graph serve-augmenter` as typed, and `--remote` of the commands that ask it."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx2 as httpx
import pytest

from calm_graph.cli import _parser, main
from calm_graph.cli.serve import read_settings as serve_settings
from calm_graph.cli.serve_augmenter import read_settings
from calm_graph.errors import DeclarationError, InputError
from calm_graph.generate.models import load_models
from calm_graph.serve import run
from calm_graph.serve.augmenter_settings import AugmenterSettings
from registry import Registry, registry, remote
from tests.cli.test_talk_commands import checkpoint  # noqa: F401


def test_the_command_line_becomes_settings(tmp_path: Path) -> None:
    arguments = ["serve-augmenter", "same", "--layers", "2,0", "--num-replicas", "2", "--onnx", "x", "--num-cpus", "3"]
    settings = read_settings(_parser().parse_args(arguments))
    assert (settings.layers, settings.onnx, settings.num_replicas, settings.num_cpus) == ((2, 0), Path("x"), 2, 3.0)
    with pytest.raises(DeclarationError, match="max_tokens"):
        read_settings(_parser().parse_args(["serve-augmenter", "same", "--max-tokens", "0"]))
    with pytest.raises(SystemExit):
        _parser().parse_args(["serve-augmenter", "same", "--layers", "a"])


def test_a_wrong_layer_is_told(workplace: Path, cards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["serve-augmenter", "same", "--num-replicas", "0", "--port", "0", "--registry", str(cards)]
    assert main([*arguments, "--layers", "99"]) == 1
    assert "settings.layers: got 99, but 'same' has layers 0.." in capsys.readouterr().err
    assert main(arguments) == 1
    assert "settings.layers: is empty; name the layers" in capsys.readouterr().err


def test_it_serves_until_it_is_stopped(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[run._Server] = []

    class Kept(run._Server):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)  # type: ignore[arg-type]
            servers.append(self)

    monkeypatch.setattr(run, "_Server", Kept)
    ready = threading.Event()
    addresses: list[str] = []

    def on_ready(address: str) -> None:
        addresses.append(address)
        ready.set()

    def ask() -> None:
        ready.wait(60)
        found.append(httpx.get(f"{addresses[0]}/v1/augmenter").json()["name"])
        servers[0].should_exit = True

    found: list[str] = []
    asking = threading.Thread(target=ask)
    asking.start()
    settings = AugmenterSettings(name="same", layers=(0,), registries=(cards,), num_replicas=0)
    run.serve_augmenter_here(settings, host="127.0.0.1", port=0, on_ready=on_ready, on_draining=lambda _: None)
    asking.join(10)
    assert found == ["same"]


def test_remotes_are_names_and_addresses(checkpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_known", {})
    options = _parser().parse_args(["serve", checkpoint, "--remote", "same=http://here:1"])
    assert serve_settings(options).named_remotes == {"same": "http://here:1"}
    options = _parser().parse_args(["serve", checkpoint, "--remote", "http://here:1"])
    with pytest.raises(DeclarationError, match=r"remotes: .*write NAME=https://host:port"):
        serve_settings(options)
    with pytest.raises(InputError, match="remotes: got 'othr', but the compositions read anchor, same"):
        load_models([(None, checkpoint)], registry=Registry(registry), remotes={"othr": "http://127.0.0.1:1"})
    assert main(["generate", checkpoint, "x", "--remote", "same=http://127.0.0.1:1"]) == 1
