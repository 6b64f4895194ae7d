"""What an export leaves: a folder that is a card, measured against torch; or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from calm_graph.augmenters.onnx_backend import OnnxBackend
from calm_graph.augmenters.onnx_export import export_augmenter, verify_export
from calm_graph.augmenters.onnx_parity import TEXTS, Parity, compare_text
from calm_graph.augmenters.onnx_quantise import reduce_precision
from calm_graph.augmenters.onnx_session import GRAPH, OnnxSession, read_export
from calm_graph.errors import OnnxError
from registry import ModelCard, Registry
from registry.fingerprint import fingerprint, tokenizer_fingerprint
from tests.augmenters.exports import LAYERS, Exports
from tests.model.pico import Zoo


def backend(folder: Path) -> OnnxBackend:
    card = read_export(folder)
    return OnnxBackend(OnnxSession(card), name=card.name, context_length=card.context_length)


@pytest.mark.parametrize("name", ["same", "other", "reader", "eye"])
def test_an_exported_folder_is_a_card(zoo: Zoo, exports: Exports, name: str) -> None:
    folder = exports.folder(name)
    (card,) = Registry().add_folder(folder)
    assert card.runtime == "onnx" and card.onnx is not None and card.onnx.origin == name
    assert card.fingerprint == fingerprint(zoo.folder / name)
    assert tokenizer_fingerprint(folder) == tokenizer_fingerprint(zoo.folder / name)
    assert card.onnx.layers == LAYERS
    assert card.onnx.reading == ("stream" if name in ("same", "other") else "prompt")
    assert min(card.onnx.cosine.values()) > 0.999999 and max(card.onnx.relative_error.values()) < 1e-4
    assert card.onnx.size_bytes == sum(file.stat().st_size for file in folder.glob(f"{GRAPH}*"))
    assert not any(zoo.folder.glob(".*")), "the folder it was written in is gone"


def test_the_graph_tells_nothing_of_this_machine(exports: Exports) -> None:
    folder = exports.folder("other")
    for file in folder.iterdir():
        assert str(Path(__file__).parents[2]).encode() not in file.read_bytes()
        assert b"site-packages" not in file.read_bytes()
    assert json.loads((folder / "card.json").read_text())["source"] == "folder:."


def test_verify_measures_again(zoo: Zoo, exports: Exports) -> None:
    card, parity = verify_export(exports.folder("other"), registry=zoo.registry)
    assert card.onnx is not None and parity.cosine == pytest.approx(dict(card.onnx.cosine), abs=1e-6)
    assert parity.problems("fp32") == []


def test_verify_needs_the_model_it_came_from(zoo: Zoo, exports: Exports) -> None:
    others = Registry([ModelCard(name="other", source=f"folder:{zoo.folder / 'same'}")])
    with pytest.raises(OnnxError, match=r"was exported from 'other' sha256:.*, but that model here is sha256:"):
        verify_export(exports.folder("other"), registry=others)


@pytest.mark.parametrize("precision, least", [("int8", 0.99), ("int4", 0.8)])
def test_fewer_bits_are_close_and_small(exports: Exports, precision: str, least: float) -> None:
    card = read_export(exports.folder("other", precision))
    assert card.onnx is not None
    assert 0.99999 > min(card.onnx.cosine.values()) >= least
    data = [(exports.folder("other", each) / f"{GRAPH}.data").stat().st_size for each in ("fp32", precision)]
    assert data[1] < 0.5 * data[0]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_state_depends_on_its_own_text_alone(exports: Exports, precision: str) -> None:
    """Alone, in a batch, with a long text beside it, and step by step: the same states."""
    quantised = backend(exports.folder("other", precision))
    rows = [[5, 9, 30, 7], list(range(20, 60)), [11]]
    parity = compare_text(quantised, quantised, rows, LAYERS, steps=True)
    assert max(parity.relative_error.values()) < 1e-4


def test_states_beyond_tolerance_are_refused_and_leave_nothing(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(
        OnnxError, match=r"'same' in int4 is too far from torch: layer 0: cosine 0\.\d+, but at least 1 "
    ):
        export_augmenter(
            "same", layers=[0], out=tmp_path / "out", precision="int4", min_cosine=1, registry=zoo.registry
        )
    assert not any(tmp_path.iterdir())


def test_an_architecture_that_does_not_export_says_so_and_leaves_nothing(zoo: Zoo, tmp_path: Path) -> None:
    zoo.add("experts", "mixtral", tokenizer="bytes", seed=12, num_hidden_layers=1)
    with pytest.raises(OnnxError, match=r"'experts' \(mixtral\) does not export to ONNX: "):
        export_augmenter("experts", layers=[0], out=tmp_path / "out", registry=zoo.registry)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layers": [0, 7]}, "layers: got 7, but 'other' has layers 0..1"),
        ({"layers": []}, "layers: got none, but 'other' has layers 0..1"),
        ({"name": "reader", "reading": "stream"}, "reading: got 'stream', but 'reader' is an encoder"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    zoo: Zoo, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    options = {"name": "other", "layers": [1], "out": tmp_path / "out", "registry": zoo.registry} | arguments
    with pytest.raises(OnnxError) as caught:
        export_augmenter(str(options.pop("name")), **options)
    assert message in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_graph_of_another_export_is_refused(zoo: Zoo, exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(OnnxError, match=r"is an export of .*but one of .* is needed; trace the model again"):
        export_augmenter(
            "other", layers=[1], out=tmp_path / "out", traced=exports.folder("other"), registry=zoo.registry
        )
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OnnxError, match="is there already; name a new folder"):
        export_augmenter("other", layers=[1], out=tmp_path / "out", registry=zoo.registry)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_parity_sees_a_difference_and_not_a_number() -> None:
    assert Parity({3: 0.97}, {3: 0.1}).problems("int8") == ["layer 3: cosine 0.970000, but at least 0.98 is needed"]
    assert Parity({3: 1.0}, {3: 2e-4}).problems("fp32") == [
        "layer 3: relative error 2.00e-04, but at most 0.0001 is allowed"
    ]
    assert len(Parity({3: float("nan")}, {3: float("nan")}).problems("fp32")) == 2
    assert len({len(text) for text in TEXTS}) == len(TEXTS)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.linear = nn.Linear(64, 48, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(ids))


@pytest.mark.parametrize("precision, relative", [("fp16", 1e-3), ("int8", 0.02), ("int4", 0.2)])
def test_rewritten_matrices_multiply_nearly_the_same(tmp_path: Path, precision: str, relative: float) -> None:
    torch.manual_seed(0)
    model, ids = _Small().eval(), torch.randint(0, 50, (3, 7))
    program = torch.onnx.export(model, (ids,), dynamo=True, opset_version=20, output_names=["out"], verbose=False)
    assert program is not None
    proto = program.model_proto
    reduce_precision(proto, precision)
    onnx.save(proto, tmp_path / "small.onnx")
    import onnxruntime as ort

    session = ort.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0])
    expected = model(ids).detach()
    assert 1e-6 < float((found - expected).norm() / expected.norm()) < relative
