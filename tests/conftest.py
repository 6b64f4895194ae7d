"""Shared test set-up: offline, few threads, and no deprecated calls into transformers."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Read by huggingface_hub and tqdm when they are first imported, hence before the imports below.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

pytest_plugins = ["tests.augmenters.exports"]

REAL_MODELS = ("smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-0.5b")


def pytest_configure(config: pytest.Config) -> None:
    # Pico models are slower with more threads, and one thread makes sums reproducible.
    torch.set_num_threads(1)


class _DeprecationLog(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            self.messages.append(message)


@pytest.fixture(autouse=True)
def _no_logged_deprecations() -> Iterator[None]:
    """Fail a test during which transformers logs that something is deprecated (it logs more often than it warns)."""
    handler = _DeprecationLog()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.messages, f"deprecated use of transformers: {handler.messages}"


@pytest.fixture(autouse=True)
def _ctrl_c_as_before() -> Iterator[None]:
    """Fail a test that leaves another Ctrl-C handler behind: later tests could not be interrupted as users do."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of prepared real models; tests that ask for it carry the mark `realmodels`."""
    folder = Path(os.environ.get("CALM_GRAPH_MODELS", Path.home() / ".cache/calm-graph/models"))
    missing = [name for name in REAL_MODELS if not (folder / name / "model.safetensors").exists()]
    if missing:
        pytest.skip(f"needs the prepared models {', '.join(missing)} in {folder} (set CALM_GRAPH_MODELS; see .ci/run)")
    return folder
