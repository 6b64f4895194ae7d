from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from registry import fingerprint as module
from registry.errors import WeightsError
from registry.fingerprint import fingerprint, tokenizer_fingerprint
from tests.registry import pico


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_digests", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = pico.save(pico.make_model("llama"), tmp_path / "model")
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_copy_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    rewrite(copied / "config.json", transformers_version="4.0.0", _name_or_path="somewhere")
    assert fingerprint(folder) == fingerprint(copied)
    assert fingerprint(folder).startswith("sha256:") and len(fingerprint(folder)) == 7 + 64


def test_weights_config_and_tokenizer_each_count(folder: Path) -> None:
    before = fingerprint(folder)
    tokenizer_before = tokenizer_fingerprint(folder)
    seen = {before}
    rewrite(folder / "config.json", rms_norm_eps=0.5)
    seen.add(fingerprint(folder))
    pico.make_model("llama", seed=1).save_pretrained(folder)
    seen.add(fingerprint(folder))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"a": 2, "b": 1}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seen.add(fingerprint(folder))
    assert len(seen) == 4
    assert tokenizer_fingerprint(folder) != tokenizer_before


def test_padding_settings_are_not_the_tokenizer(folder: Path) -> None:
    before = tokenizer_fingerprint(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert tokenizer_fingerprint(folder) == before


def test_a_changed_byte_counts_even_when_the_modification_time_is_put_back(folder: Path) -> None:
    weights = folder / "model.safetensors"
    long_ago = time.time() - 3600
    os.utime(weights, (long_ago, long_ago))
    before = fingerprint(folder)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, (long_ago, long_ago))
    assert fingerprint(folder) != before


def test_hashes_of_settled_files_are_kept_on_disk_and_a_damaged_store_is_no_problem(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_S", -1.0)
    before = fingerprint(folder)
    store = tmp_path / "cache" / "calm-graph" / "fingerprints.json"
    assert len(json.loads(store.read_text())) == 3
    monkeypatch.setattr(module, "_digests", {})
    kept = json.loads(store.read_text())
    key = next(key for key in kept if key.endswith("model.safetensors"))
    kept[key][1] = "0" * 64
    store.write_text(json.dumps(kept))
    assert fingerprint(folder) != before  # so the store is what was read
    monkeypatch.setattr(module, "_digests", {})
    store.write_text("{ damaged")
    assert fingerprint(folder) == before
    assert not list(store.parent.glob("*.tmp"))


def test_a_model_without_a_tokenizer_or_without_weights(tmp_path: Path) -> None:
    folder = pico.save(pico.make_model("vit"), tmp_path / "vit")
    assert tokenizer_fingerprint(folder) is None
    assert fingerprint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no \*\.safetensors file"):
        fingerprint(folder)
