"""An ONNX export at work, without torch: checked, opened, run on NumPy arrays or on anything that speaks DLPack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from calm_graph.errors import OnnxError
from registry import ModelCard, Registry
from registry.catalog import CARD_FILE
from registry.errors import CardError
from registry.fingerprint import file_digest
from registry.sources import local_path

GRAPH = "model.onnx"
CPU = "CPUExecutionProvider"
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxSettings:
    """How ONNX Runtime runs an export.

    Args:
        num_threads: Threads of one session; None takes all cores, so set it wherever several processes share a machine.
        providers: ONNX Runtime's names of what to run on, the most wanted first.
        allow_cpu_fallback: Whether running on the CPU is fine when the first provider is not to be had.
    """

    num_threads: int | None = None
    providers: tuple[str, ...] = (CPU,)
    allow_cpu_fallback: bool = False


def read_export(folder: str | Path) -> ModelCard:
    """Read the card of an exported folder.

    Args:
        folder: What `calm-graph export` wrote.

    Raises:
        OnnxError: It is not such a folder.
    """
    try:
        cards = Registry().add_folder(folder)
    except CardError as error:
        raise OnnxError(str(error)) from error
    if len(cards) != 1 or cards[0].onnx is None:
        raise OnnxError(f"{folder}: has no {CARD_FILE} of an ONNX export; name a folder that calm-graph export wrote")
    return cards[0]


class OnnxSession:
    """One opened export.

    Args:
        card: A card of `runtime: onnx`.
        settings: Threads and providers.

    Raises:
        OnnxError: Files are missing, changed or not usable, or the provider is not there.
    """

    def __init__(self, card: ModelCard, settings: OnnxSettings | None = None) -> None:
        settings = settings or OnnxSettings()
        self.card = card
        graph = _checked_graph(card)
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.num_threads or 0
        # Threads that spin between two calls would take the cores from the anchor, which runs in torch.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Looking for memory to share takes seconds for a thousand nodes and saves none: buffers are freed as they are
        # read for the last time. Patterns of memory are kept for each shape, and each step has a shape of its own.
        options.enable_mem_reuse = False
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(graph, options, providers=[*settings.providers])
        except Exception as error:  # each kind of damage has its own class
            raise OnnxError(_reason(card, graph, error)) from error
        got = self._session.get_providers()
        # What the session got is the only truth: get_available_providers() lists what was compiled in.
        if got[0] != settings.providers[0] and not settings.allow_cpu_fallback:
            raise OnnxError(
                f"ONNX export {card.name!r}: asked for {settings.providers[0]}, but the session got {', '.join(got)}; "
                "install what the provider needs, or set allow_cpu_fallback=True"
            )
        self.device = "cuda" if got[0] == "CUDAExecutionProvider" else "cpu"
        self.inputs = {found.name: _DTYPES[found.type] for found in self._session.get_inputs()}
        self.outputs = tuple(found.name for found in self._session.get_outputs())
        self._shapes = {found.name: found.shape for found in self._session.get_inputs()}
        self.past = tuple(name for name in self.inputs if name.startswith("past."))

    @property
    def num_threads(self) -> int:
        """Threads of the session; 0 is one for each core."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def state(self, layer: int) -> str:
        """Return the name of the output that holds a layer's states.

        Raises:
            OnnxError: The graph does not return them.
        """
        name = f"state.{layer}"
        if name not in self.outputs:
            layers = ", ".join(found.removeprefix("state.") for found in self.outputs if found.startswith("state."))
            raise OnnxError(f"ONNX export {self.card.name!r}: has the states of layers {layers}, but {layer} is read")
        return name

    def shape(self, name: str) -> list[int | str]:
        """Return the shape of an input; free axes have names."""
        return list(self._shapes[name])

    def empty_past(self, num_rows: int) -> dict[str, np.ndarray]:
        """Return the keys and values of no token, by name of the input."""
        return {
            name: np.empty([num_rows, self._shapes[name][1], 0, self._shapes[name][3]], self.inputs[name])
            for name in self.past
        }

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Iterable[str]) -> dict[str, np.ndarray]:
        """Run on NumPy arrays.

        Args:
            inputs: By name; those of `self.inputs`.
            outputs: Names of what to return.

        Returns:
            Name -> array.

        Raises:
            OnnxError: The runtime refuses the inputs.
        """
        names = [*outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise OnnxError(f"ONNX export {self.card.name!r}: {_first_line(error)}") from error

    def bind(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """Run on memory that is shared, not copied.

        Args:
            inputs: By name, contiguous and on the session's device; anything with `__dlpack__`.
            outputs: Names of what to return.

        Returns:
            `OrtValue`s, which speak DLPack, in the order of `outputs`; they stay where they were made.

        Raises:
            OnnxError: The runtime refuses the inputs.
        """
        names = [*outputs]
        try:
            values = {
                name: _empty(value, self.inputs[name], self.device) if 0 in value.shape else _shared(value)
                for name, value in inputs.items()
            }
            if self.device == "cpu":  # one call; a binding makes one for each of the many keys and values
                return list(self._session.run_with_ort_values(names, values))
            binding = self._session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_output(name, self.device)
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise OnnxError(f"ONNX export {self.card.name!r}: {_first_line(error)}") from error
        return list(binding.get_outputs())


def _shared(value: Any) -> Any:
    return ort.OrtValue.from_dlpack(value.__dlpack__())  # of a capsule, its dtype is not looked up by name


def _empty(value: Any, dtype: type[np.generic], device: str) -> Any:
    """No memory to share: ONNX Runtime refuses the null pointer of an empty tensor."""
    return ort.OrtValue.ortvalue_from_shape_and_type([*value.shape], dtype, device, 0)


def _checked_graph(card: ModelCard) -> Path:
    """Return the path of the graph, after looking whether every file is the one that was written."""
    if card.onnx is None:
        raise OnnxError(
            f"card {card.name!r}: runtime is 'onnx', but the card does not describe an export; "
            "add the folder that calm-graph export wrote to the registry"
        )
    folder = local_path(card)
    if folder is None:
        raise OnnxError(f"ONNX export {card.name!r}: {card.location} is not here; copy the exported folder again")
    for name, digest in card.onnx.files.items():
        file = folder / name
        if not file.is_file():
            raise OnnxError(f"ONNX export {card.name!r}: {file} is missing; copy the exported folder again")
        if file_digest(file) != digest:
            raise OnnxError(
                f"ONNX export {card.name!r}: {file} is not the file that was written (cut short, or changed); "
                "copy the exported folder again"
            )
    return folder / GRAPH


def _reason(card: ModelCard, graph: Path, error: Exception) -> str:
    where, reason = f"ONNX export {card.name!r}", _first_line(error)
    if "opset" in reason.lower():
        return (
            f"{where}: {graph} needs an opset that ONNX Runtime {ort.__version__} does not have; upgrade it ({reason})"
        )
    if "provider" in reason.lower():
        return f"{where}: {reason}; ONNX Runtime was built with {', '.join(ort.get_available_providers())}"
    return f"{where}: ONNX Runtime {ort.__version__} cannot open {graph}: {reason}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
