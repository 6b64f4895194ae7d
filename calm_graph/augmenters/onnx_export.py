"""Export a frozen augmenter to a folder that ONNX Runtime runs; it appears only when its states agree with torch's."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import onnx
import torch

from calm_graph.augmenters.onnx_backend import OnnxBackend
from calm_graph.augmenters.onnx_graph import OPSET, export_graph
from calm_graph.augmenters.onnx_parity import Parity, compare_inputs, compare_text, text_rows
from calm_graph.augmenters.onnx_quantise import BITS, Precision, reduce_precision
from calm_graph.augmenters.onnx_session import GRAPH, OnnxSession, OnnxSettings, read_export
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.errors import OnnxError
from registry import ModelCard, Registry
from registry import registry as default_registry
from registry.card import OnnxExport
from registry.catalog import CARD_FILE
from registry.fingerprint import file_digest
from registry.layouts import COMPOSITION
from registry.weights import find_files, identity, load_body, load_tokenizer

Reading = Literal["prompt", "stream"]
Show = Callable[[str], None]

_TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "*.jinja")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportEstimate:
    """What an export will take.

    Args:
        size_bytes: Of its files.
        seconds: On two idle cores.
    """

    size_bytes: int
    seconds: float


def estimate_export(card: ModelCard, layers: Sequence[int], precision: Precision) -> ExportEstimate | None:
    """Work out size and time from a card; None if it lacks a fact.

    Args:
        card: With its facts.
        layers: Layers to return.
        precision: Of the weights.
    """
    if card.num_parameters is None or card.num_layers is None or card.hidden_size is None:
        return None
    embeddings = (card.vocab_size or 0) * card.hidden_size
    num_blocks = max(layers) + 1
    weights = embeddings + (card.num_parameters - embeddings) * num_blocks // card.num_layers
    # Tracing costs about the same for each block; conversion and comparison grow with the weights.
    return ExportEstimate(size_bytes=weights * BITS[precision] // 8, seconds=5 + 4 * num_blocks + weights / 2e7)


def export_augmenter(
    name: str,
    *,
    layers: Sequence[int],
    out: str | Path,
    reading: Reading | None = None,
    precision: Precision = "fp32",
    traced: str | Path | None = None,
    min_cosine: float | None = None,
    registry: Registry | None = None,
    show: Show | None = None,
) -> ModelCard:
    """Export a model up to the last of some layers, and compare it with torch.

    Args:
        name: Card's name of a model that runs in torch.
        layers: Layers whose states the graph returns, 0-based.
        out: A folder that does not exist yet; nothing is left there if anything goes wrong.
        reading: `stream` runs step by step, too; `prompt` reads a whole text at once. None: `stream` where it can.
        precision: Of the weights.
        traced: A float32 export of the same model, layers and reading, whose graph is taken instead of tracing again.
        min_cosine: Smallest mean cosine with torch's states at any layer; None takes the precision's own.
        registry: Where the name is looked up; None is the default one.
        show: Gets a line about each stage.

    Returns:
        The export's card, which is also in the folder as card.json.

    Raises:
        OnnxError: A layer does not exist, the model does not export, or its states are beyond tolerance.
        RegistryError: The model cannot be found or is not what its card says.
    """
    show = show or (lambda line: None)
    origin = (default_registry if registry is None else registry).get(name)
    chosen = _check_layers(origin, layers)
    reading = _check_reading(origin, reading)
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OnnxError(f"{out}: is there already; name a new folder, or remove it first")
    if (cost := estimate_export(origin, chosen, precision)) is not None:
        show(f"{name}: {max(chosen) + 1} blocks, about {cost.size_bytes / 1e6:,.0f} MB and {cost.seconds:,.0f} s")
    fingerprint = identity(origin)
    reference = _reference(origin, max(chosen) + 1)
    with _staged(out) as stage:
        if traced is None:
            show("tracing")
            model = export_graph(reference, origin, chosen, keeps=reading == "stream")
        else:
            model = _traced(traced, fingerprint, chosen, reading)
        show(f"writing {precision}")
        reduce_precision(model, precision)
        _save(model, stage / GRAPH)
        _copy_rest(origin, reference, stage)
        files = {file.name: file_digest(file) for file in sorted(stage.glob(f"{GRAPH}*"))}
        export = OnnxExport(
            origin=origin.name,
            layers=chosen,
            reading=reading,
            precision=precision,
            opset=OPSET,
            files=files,
            size_bytes=sum((stage / file).stat().st_size for file in files),
            replaces_bytes=4 * sum(each.numel() for each in reference.parameters()),
            cosine={},
            relative_error={},
        )
        card = origin.model_copy(
            update={
                "name": f"{origin.name}-onnx-{precision}",
                "source": f"folder:{stage}",
                "revision": None,
                "fingerprint": fingerprint,
                "runtime": "onnx",
                "trust_remote_code": False,
                "onnx": export,
            }
        )
        show("comparing with torch")
        parity = _measure(reference, card)
        if problems := parity.problems(precision, min_cosine):
            raise OnnxError(
                f"{name!r} in {precision} is too far from torch: {'; '.join(problems)}; nothing was written"
            )
        export = export.model_copy(update={"cosine": parity.cosine, "relative_error": parity.relative_error})
        card = card.model_copy(update={"source": "folder:.", "onnx": export})
        (stage / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card.model_copy(update={"source": f"folder:{out}"})


def verify_export(folder: str | Path, *, registry: Registry | None = None) -> tuple[ModelCard, Parity]:
    """Measure an exported folder against the torch model it came from.

    Args:
        folder: What `export_augmenter` wrote.
        registry: Where the torch model is looked up; None is the default one.

    Returns:
        Its card, and what was measured now.

    Raises:
        OnnxError: The folder is damaged, or the torch model here is not the one it came from.
        RegistryError: The torch model is not here.
    """
    card = read_export(folder)
    assert card.onnx is not None
    origin = (default_registry if registry is None else registry).get(card.onnx.origin)
    if (found := identity(origin)) != card.fingerprint:
        raise OnnxError(
            f"{folder}: was exported from {card.onnx.origin!r} {card.fingerprint}, but that model here is {found}; "
            "export it again"
        )
    return card, _measure(_reference(origin, max(card.onnx.layers) + 1), card)


def _check_layers(card: ModelCard, layers: Sequence[int]) -> tuple[int, ...]:
    if card.runtime != "torch" or card.architecture == COMPOSITION:
        what = "an export itself" if card.runtime != "torch" else "a composition, and compositions run in torch"
        raise OnnxError(f"got {card.name!r}, which is {what}; name a model that runs in torch")
    assert card.num_layers is not None or not card.missing_facts(), "facts are read from the model's files"
    if card.num_layers is None:
        raise OnnxError(f"got {card.name!r}, whose files ({card.source}) are not here; fetch the model first")
    wrong = [layer for layer in layers if not 0 <= layer < card.num_layers]
    if wrong or not layers:
        got = ", ".join(map(str, wrong)) or "none"
        raise OnnxError(f"layers: got {got}, but {card.name!r} has layers 0..{card.num_layers - 1}")
    return tuple(sorted(set(layers)))


def _check_reading(card: ModelCard, reading: Reading | None) -> Reading:
    steps = card.modality == "text" and card.causal is not False
    if reading == "stream" and not steps:
        raise OnnxError(f"reading: got 'stream', but {card.name!r} is an encoder and reads a whole input; use 'prompt'")
    return reading or ("stream" if steps else "prompt")


def _reference(card: ModelCard, num_blocks: int) -> TorchBackend:
    body = load_body(card, num_blocks, dtype=torch.float32)
    return TorchBackend(body, name=card.name, context_length=card.context_length)


def _traced(folder: str | Path, fingerprint: str, layers: tuple[int, ...], reading: Reading) -> onnx.ModelProto:
    card = read_export(folder)
    assert card.onnx is not None
    found = (card.fingerprint, card.onnx.layers, card.onnx.reading, card.onnx.precision)
    if found != (wanted := (fingerprint, layers, reading, "fp32")):
        raise OnnxError(f"{folder}: is an export of {found}, but one of {wanted} is needed; trace the model again")
    OnnxSession(card, OnnxSettings(num_threads=1))  # looks whether the files are whole
    return onnx.load(Path(folder) / GRAPH)


def _measure(reference: TorchBackend, card: ModelCard) -> Parity:
    assert card.onnx is not None
    session = OnnxSession(card, OnnxSettings(num_threads=torch.get_num_threads()))
    candidate = OnnxBackend(session, name=card.name, context_length=card.context_length)
    if card.modality == "text":
        rows = text_rows(card, load_tokenizer(card))
        return compare_text(reference, candidate, rows, card.onnx.layers, steps=card.onnx.reading == "stream")
    generator = torch.Generator().manual_seed(0)
    (name,) = candidate.inputs()
    shape = [3, *(size if isinstance(size, int) else 16000 for size in session.shape(name)[1:])]
    return compare_inputs(reference, candidate, {name: torch.randn(shape, generator=generator)}, card.onnx.layers)


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)


def _copy_rest(card: ModelCard, reference: TorchBackend, stage: Path) -> None:
    """Add the config and the tokenizer: with them the folder needs nothing else of the model it came from."""
    source = find_files(card)
    if source.is_file():  # GGUF holds both
        body: Any = reference.body
        body.config.save_pretrained(stage)
        load_tokenizer(card).save_pretrained(stage)
        return
    shutil.copyfile(source / "config.json", stage / "config.json")
    for file in {file for pattern in _TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, stage / file.name)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `out` if nothing goes wrong, and else disappears."""
    stage = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        with _left_on_sigterm():
            stage.mkdir(parents=True)
            yield stage
            stage.replace(out)
    except OSError as error:
        raise OnnxError(f"{out}: cannot be written ({error}); nothing was written") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _left_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, which cleans up as any other does; a handler that is there already is kept."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
