"""The identity of a frozen model: one sha256 of its weights, of what its config computes, and of its tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.errors import WeightsError
from registry.sources import gguf_reader, read_json

_BOOKKEEPING = frozenset(
    {"transformers_version", "_name_or_path", "_model_name_or_path", "architectures", "num_parameters"}
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")
_SETTLED_S = 2.0
"""A file younger than this may change again within the clock's resolution, so its hash is not kept on disk."""

_digests: dict[tuple[str, str], tuple[list[int], str]] = {}


def fingerprint(path: str | Path) -> str:
    """Return `sha256:<hex>` of a model folder, or of a GGUF file.

    How the weights are split into shards does count; names of folders, versions and comments in the config do not.

    Args:
        path: a folder with config.json and *.safetensors, or one GGUF file (which holds all three parts).

    Raises:
        WeightsError: there are no weights at `path`.
    """
    path = Path(path)
    if path.is_file():
        return f"sha256:{_cached('weights', path, _hash_bytes)}"
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise WeightsError(f"{path}: no *.safetensors file, so there is nothing to take a fingerprint of")
    config = path / "config.json"
    parts = {
        "config": _cached("config", config, _hash_config) if config.is_file() else None,
        "tokenizer": tokenizer_fingerprint(path),
        "weights": [_cached("weights", shard, _hash_bytes) for shard in shards],
    }
    return f"sha256:{_hash_json(parts)}"


def tokenizer_fingerprint(path: str | Path) -> str | None:
    """Return `sha256:<hex>` of a model's tokenizer, or None when the model has none.

    Two models with equal tokenizer fingerprints give the same token ids to every text. Padding and truncation
    settings, which a saved tokenizer.json may carry, do not count.

    Args:
        path: a model folder, or one GGUF file.

    Raises:
        WeightsError: the tokenizer file cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return f"sha256:{_cached('tokenizer', path, _hash_gguf_tokenizer)}"
    if (path / "tokenizer.json").is_file():
        return f"sha256:{_cached('tokenizer', path / 'tokenizer.json', _hash_tokenizer)}"
    files = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    return f"sha256:{_hash_json([_cached('tokenizer', file, _hash_bytes) for file in files])}" if files else None


def file_digest(file: str | Path) -> str:
    """Return `sha256:<hex>` of one file's bytes, remembered for as long as the file does not change."""
    return f"sha256:{_cached('weights', Path(file), _hash_bytes)}"


def _hash_bytes(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hash_config(file: Path) -> str:
    return _hash_json(_without_bookkeeping(read_json(file)))


def _without_bookkeeping(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_bookkeeping(inner) for key, inner in value.items() if key not in _BOOKKEEPING}
    return value


def _hash_tokenizer(file: Path) -> str:
    content = read_json(file)
    return _hash_json({key: value for key, value in content.items() if key not in ("padding", "truncation", "version")})


def _hash_gguf_tokenizer(file: Path) -> str:
    fields = gguf_reader(file).fields
    return _hash_json({name: fields[name].contents() for name in sorted(fields) if name.startswith("tokenizer.ggml.")})


def _cached(kind: str, file: Path, compute: Callable[[Path], str]) -> str:
    """Return `compute(file)`, remembered for as long as the file has the same size and times.

    Raises:
        WeightsError: the file changed while it was read.
    """
    file = file.resolve()
    key = (kind, str(file))
    stamp = _stamp(file)
    if (known := _digests.get(key)) and known[0] == stamp:
        return known[1]
    stored = _read_store().get(":".join(key))
    if isinstance(stored, list) and len(stored) == 2 and stored[0] == stamp:
        digest = str(stored[1])
    else:
        digest = compute(file)
        if _stamp(file) != stamp:
            raise WeightsError(f"{file}: changed while it was read; try again when it is complete")
        if time.time() - max(stamp[1:]) / 1e9 > _SETTLED_S:
            _write_store(":".join(key), [stamp, digest])
        else:
            return digest
    _digests[key] = (stamp, digest)
    return digest


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _store_file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
    return cache / "calm-graph" / "fingerprints.json"


def _read_store() -> dict[str, Any]:
    try:
        store = json.loads(_store_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # a lost cache costs a second look at the files, nothing else
    return store if isinstance(store, dict) else {}


def _write_store(key: str, value: Any) -> None:
    file = _store_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as stream:
            json.dump({**_read_store(), key: value}, stream)
        os.replace(stream.name, file)
    except OSError:
        return  # a read-only home is no reason to fail
