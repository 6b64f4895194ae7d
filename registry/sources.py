"""From a card to the files on this machine, and the facts that can be read from them without torch."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from registry import layouts
from registry.card import ModelCard
from registry.errors import WeightsError

EMBEDDED = Path(__file__).parent / "embedded"


def mirror_folder(name: str) -> Path:
    """Return where a local copy of the model `name` is looked for: `$CALM_GRAPH_MODELS/name`."""
    default = Path.home() / ".cache" / "calm-graph" / "models"
    return Path(os.environ.get("CALM_GRAPH_MODELS") or default).expanduser() / name


def hub_snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """Return the folder of an already downloaded hub model, or None. Follows huggingface_hub's cache layout."""
    hf_home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(hf_home) / "hub").expanduser()
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text("utf-8").strip() if reference.is_file() else (revision or "")
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and (snapshot / "config.json").is_file() else None


def local_path(card: ModelCard) -> Path | None:
    """Return the folder (or the GGUF file) that holds the model on this machine, or None. Never downloads.

    Of a model that a service runs, the folder holds the tokenizer and the facts.

    A mirror folder wins over the hub, so that a machine without a network can serve hub cards.
    """
    if card.scheme in ("folder", "gguf"):
        path = Path(card.location).expanduser()
    elif card.scheme == "embedded":
        path = EMBEDDED / card.location
    elif card.scheme == "remote":
        path = remote_folder(card.location, card.fingerprint)
    else:
        path = mirror_folder(card.name)
        if not (path / "config.json").is_file():
            return hub_snapshot(card.location, card.revision)
    wanted = path if card.scheme == "gguf" else path / "config.json"
    return path if wanted.is_file() else None


def remote_folder(url: str, fingerprint: str | None) -> Path:
    """Return where the tokenizer and the facts of a model that a service runs are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    key = hashlib.sha256(f"{url} {fingerprint}".encode()).hexdigest()
    return cache / "calm-graph" / "remote" / key[:32]


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of `path/config.json`, or the equivalent of it in the header of a GGUF file.

    Raises:
        WeightsError: the file is not JSON, or no GGUF file.
    """
    file = path / "config.json" if path.is_dir() else path
    stat = file.stat()
    return dict(_read_config(file, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=256)
def _read_config(file: Path, size_bytes: int, mtime_ns: int) -> dict[str, Any]:
    if file.suffix.lower() == ".gguf":
        return _read_gguf_header(file)
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        WeightsError: the file holds something else.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def read_facts(card: ModelCard) -> dict[str, Any]:
    """Return the facts of a card's model as far as its files are on this machine; empty when they are not.

    Raises:
        WeightsError: the files are there but not readable.
    """
    path = local_path(card)
    if path is None:
        return {}
    config = read_config(path)
    facts = layouts.facts(config)
    if path.is_dir() and facts["architecture"] != layouts.COMPOSITION:  # whose file holds the attachments only
        total, experts = count_parameters(path)
        share = layouts.expert_share(config)
        facts["num_parameters"] = total or None
        facts["num_active_parameters"] = total - round((1 - share) * experts) if share and experts else None
    return facts


def count_parameters(folder: Path) -> tuple[int, int]:
    """Count the numbers in a folder's safetensors files by their headers.

    Returns:
        All of them, and those of experts that a token may not go through.

    Raises:
        WeightsError: a header cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    counts = [_count_parameters(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sum(total for total, _ in counts), sum(experts for _, experts in counts)


@lru_cache(maxsize=256)
def _count_parameters(file: Path, size_bytes: int, mtime_ns: int) -> tuple[int, int]:
    sizes = {name: _product(tensor["shape"]) for name, tensor in read_safetensors_header(file).items()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if layouts.EXPERTS in name)


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Return name -> {dtype, shape, data_offsets} of a safetensors file, without reading any tensor.

    Raises:
        WeightsError: the file is truncated or no safetensors file.
    """
    header, length, size_bytes = _safetensors_header(file)
    header.pop("__metadata__", None)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if end > size_bytes:
        raise WeightsError(f"{file}: truncated: {size_bytes} bytes, but its header promises {end}; copy it again")
    return header


def read_safetensors_metadata(file: Path) -> dict[str, str]:
    """Return the texts that a safetensors file holds beside its tensors.

    Raises:
        WeightsError: the file is truncated or no safetensors file.
    """
    metadata: dict[str, str] = _safetensors_header(file)[0].get("__metadata__", {})
    return metadata


def _safetensors_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, its length and the file's, in bytes."""
    # Format: 8 bytes little-endian header length, then that many bytes of JSON, then the tensors.
    size_bytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        text = stream.read(length) if len(prefix) == 8 and length <= size_bytes else b""
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{file}: not a whole safetensors file; copy it again") from error
    return header, length, size_bytes


def gguf_reader(file: Path) -> Any:
    """Open a GGUF file with the reader of the `gguf` package.

    Raises:
        WeightsError: the package is not installed, or the file is no whole GGUF file.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise WeightsError(f"{file}: reading GGUF files needs the gguf package: pip install gguf accelerate") from error
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(f"{file}: not readable as GGUF: {error}") from error


def _read_gguf_header(file: Path) -> dict[str, Any]:
    reader = gguf_reader(file)
    # Arrays are the vocabulary: long, slow to decode, and not needed but for their number.
    values = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    if "tokenizer.ggml.tokens" in reader.fields:
        values["vocab_size"] = len(reader.fields["tokenizer.ggml.tokens"].data)
    values["num_parameters"] = sum(int(tensor.n_elements) for tensor in reader.tensors)
    return layouts.config_from_gguf(values)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
