"""The shared pico models and exports, under short names."""

from __future__ import annotations

import pytest

from tests.augmenters.exports import Exports
from tests.model.pico import Zoo


@pytest.fixture(scope="session")
def zoo(onnx_zoo: Zoo) -> Zoo:
    return onnx_zoo


@pytest.fixture(scope="session")
def exports(onnx_exports: Exports) -> Exports:
    return onnx_exports
