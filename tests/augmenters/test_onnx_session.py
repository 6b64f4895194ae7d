"""The part without torch: opening, checking and running an export, and every way in which it may be damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from calm_graph.augmenters.onnx_session import GRAPH, OnnxSession, OnnxSettings, read_export
from calm_graph.errors import OnnxError
from registry.fingerprint import file_digest
from tests.augmenters.exports import Exports

WITHOUT_TORCH = """
import sys
import numpy as np
from calm_graph.augmenters.onnx_session import OnnxSession, OnnxSettings, read_export

session = OnnxSession(read_export(sys.argv[1]), OnnxSettings(num_threads=1))
ids = np.array([[5, 6, 7], [8, 9, 10]])
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(3)[None].repeat(2, 0)}
first = session.run({**inputs, **session.empty_past(2)}, [session.state(1)])
(second,) = session.bind({**inputs, **session.empty_past(2)}, [session.state(1)])
assert np.array_equal(first["state.1"], second.numpy()) and first["state.1"].shape == (2, 3, 16)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "onnx"}))
"""


def test_a_service_of_an_export_never_imports_torch(exports: Exports) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(exports.folder("other"))], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.fixture
def copy(exports: Exports, tmp_path: Path) -> Path:
    return shutil.copytree(exports.folder("other"), tmp_path / "copy")


def refused(folder: Path, settings: OnnxSettings | None = None) -> str:
    with pytest.raises(OnnxError) as caught:
        OnnxSession(read_export(folder), settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def resigned(folder: Path) -> None:
    """Make the card agree with the files, as somebody who exports by hand would."""
    card = json.loads((folder / "card.json").read_text())
    card["onnx"]["files"] = {name: file_digest(folder / name) for name in card["onnx"]["files"]}
    (folder / "card.json").write_text(json.dumps(card))


def test_a_truncated_graph(copy: Path) -> None:
    (copy / GRAPH).write_bytes((copy / GRAPH).read_bytes()[:-100])
    assert f"{copy / GRAPH} is not the file that was written (cut short, or changed)" in refused(copy)


def test_tampered_weights(copy: Path) -> None:
    data = bytearray((copy / f"{GRAPH}.data").read_bytes())
    data[100] ^= 1
    (copy / f"{GRAPH}.data").write_bytes(data)
    assert f"{GRAPH}.data is not the file that was written" in refused(copy)


def test_missing_external_data(copy: Path) -> None:
    (copy / f"{GRAPH}.data").unlink()
    assert f"{copy / GRAPH}.data is missing; copy the exported folder again" in refused(copy)


def test_a_file_that_is_no_graph(copy: Path) -> None:
    (copy / GRAPH).write_bytes(b"no graph at all")
    resigned(copy)
    assert f"cannot open {copy / GRAPH}:" in refused(copy)


def test_an_opset_that_the_runtime_lacks(copy: Path) -> None:
    model = onnx.load(copy / GRAPH, load_external_data=False)
    next(each for each in model.opset_import if each.domain in ("", "ai.onnx")).version = 99
    (copy / GRAPH).write_bytes(model.SerializeToString())
    resigned(copy)
    assert "needs an opset that ONNX Runtime" in refused(copy)


def test_a_provider_that_is_not_there(copy: Path) -> None:
    message = refused(copy, OnnxSettings(providers=("NoSuchExecutionProvider",)))
    assert "NoSuchExecutionProvider" in message and "CPUExecutionProvider" in message


def test_a_fallback_to_the_cpu_is_an_error_unless_allowed(copy: Path) -> None:
    cuda = ("CUDAExecutionProvider",)
    try:
        session = OnnxSession(read_export(copy), OnnxSettings(providers=cuda, allow_cpu_fallback=True))
    except OnnxError as error:  # the build for the CPU alone does not know the name
        pytest.skip(f"needs onnxruntime-gpu: {error}")
    if session.device == "cuda":
        pytest.skip("needs a machine without CUDA")
    assert "asked for CUDAExecutionProvider, but the session got CPUExecutionProvider" in refused(
        copy, OnnxSettings(providers=cuda)
    )


def test_a_folder_that_is_no_export(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(
        OnnxError, match=r"has no card.json of an ONNX export; name a folder that calm-graph export wrote"
    ):
        read_export(tmp_path)
    with pytest.raises(OnnxError, match="no such folder"):
        read_export(tmp_path / "nowhere")


def test_a_layer_and_an_input_that_the_graph_lacks(exports: Exports) -> None:
    session = OnnxSession(read_export(exports.folder("other")))
    with pytest.raises(OnnxError, match="has the states of layers 0, 1, but 3 is read"):
        session.state(3)
    with pytest.raises(OnnxError, match="ONNX export 'other-onnx-fp32': "):
        session.run({"input_ids": np.zeros((1, 2), np.float32)}, ["state.1"])
