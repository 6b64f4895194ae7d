"""`calm-graph generate` and `calm-graph chat` on a checkpoint, as typed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calm_graph.cli import main
from calm_graph.cli.generate import load_model
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from registry import Registry, registry
from tests.generate.conftest import CHATML
from tests.model.pico import train_at_random


@pytest.fixture
def checkpoint(workplace: Path, cards: Path) -> str:
    from calm_graph.declare.files import load_composition

    own = Registry()
    own.add_folder(cards)
    model = build_model(load_composition("prices.py"), registry=own, seed=0)
    train_at_random(model)
    model.save_pretrained("checkpoint")
    registry.add_folder(cards)
    return "checkpoint"


def test_generate_streams_what_json_reports(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", checkpoint, "price of apples", "--max-new-tokens", "8"]) == 0
    streamed = capsys.readouterr().out
    assert main(["generate", checkpoint, "price of apples", "--max-new-tokens", "8", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["text"] + "\n" == streamed
    assert (reported["stopped"], reported["num_new_tokens"]) == ("length", 8)


def test_generate_reads_standard_input_and_scales(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {}
    for scale in ("1", "0"):
        monkeypatch.setattr("sys.stdin", io.StringIO("price of apples\n"))
        arguments = ["--max-new-tokens", "8", "--json", "--augmenter", f"same={scale}"]
        assert main(["generate", checkpoint, "-", *arguments]) == 0
        reported = json.loads(capsys.readouterr().out)
        assert reported["augmenters"] == {"same": float(scale)}
        texts[scale] = reported["text"]
    assert texts["0"] != texts["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--temperature", "-1"], "temperature: got -1.0, but 0..100 is allowed"),
        (["x", "--augmenter", "same"], "augmenter: got 'same', but NAME=SCALE is needed"),
        (["x", "--augmenter", "nobody=1"], "got 'nobody'"),
        ([""], "prompt: got an empty text"),
    ],
)
def test_generate_names_a_mistake(
    checkpoint: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["generate", checkpoint, *arguments]) == 1
    assert message in capsys.readouterr().err


def chat(lines: list[str | type[BaseException]], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Type lines, or keys: KeyboardInterrupt is Ctrl-C, EOFError is Ctrl-D."""
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def type_line(prompt: str = "") -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", type_line)
    return main(["chat", *arguments, "--max-new-tokens", "6", "--temperature", "0"])


def test_chat_answers_obeys_and_leaves(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["price?", KeyboardInterrupt, "", "/scale same=0.5", "/scale nobody=1", "/reset", "/nonsense", "/help"]
    assert chat(lines, monkeypatch, checkpoint) == 0
    output = capsys.readouterr().out
    assert "each message is a prompt of its own" in output
    assert "(cut at the most tokens allowed)" in output
    assert "(Ctrl-D or /quit leaves)" in output
    assert "(scales: same=0.5)" in output
    assert "got 'nobody'" in output
    assert "(forgotten)" in output
    assert "got '/nonsense', but the commands are /help" in output
    assert "forget the conversation" in output


def test_chat_with_a_template_trims_with_a_note_and_quits(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_with_template(name: str, **options: Any) -> ComposedModel:
        model = load_model(name, **options)
        model.tokenizer.chat_template = CHATML
        return model

    monkeypatch.setattr("calm_graph.cli.chat.load_model", load_with_template)
    lines = [f"question {number}: what is the price of apples and pears?" for number in range(8)]
    assert chat([*lines, "/quit", "never read"], monkeypatch, checkpoint, "--system", "be kind") == 0
    output = capsys.readouterr().out
    assert "prompt of its own" not in output
    assert "(the context is full: the 2 oldest messages are forgotten)" in output
