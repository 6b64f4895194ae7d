from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from registry import ModelCard


def test_importing_the_registry_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import registry, sys; names = registry.registry.names(); registry.registry.get('gemma3-270m');"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'safetensors', 'gguf'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models/x", "write 'hub:org/name'"),
        ("folder:", "write 'hub:org/name'"),
        ("ftp:x", "write 'hub:org/name'"),
        ("hub:gpt2", "names an organisation and a model"),
        ("gguf:/models/x.bin", "one file that ends in .gguf"),
    ],
)
def test_a_source_that_cannot_be_found_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelCard(name="x", source=source)


def test_unknown_fields_are_refused_with_the_near_one() -> None:
    with pytest.raises(ValidationError, match="unknown field 'num_layer'; did you mean 'num_layers'"):
        ModelCard.model_validate({"name": "x", "source": "folder:/x", "num_layer": 3})
    with pytest.raises(ValidationError, match="unknown field 'zzz'; known fields: name, source"):
        ModelCard.model_validate({"name": "x", "source": "folder:/x", "zzz": 3})


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "org/name"])
def test_a_name_is_one_that_can_name_a_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        ModelCard(name=name, source="folder:/x")


@pytest.mark.parametrize("field", ["num_layers", "hidden_size", "num_heads", "context_length"])
def test_sizes_are_positive(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ModelCard.model_validate({"name": "x", "source": "folder:/x", field: 0})


def test_a_card_is_frozen_and_survives_json_unchanged() -> None:
    card = ModelCard(name="x", source="hub:org/x", tags=frozenset({"code", "chat", "anchor"}), num_layers=2)
    with pytest.raises(ValidationError, match="frozen"):
        card.num_layers = 3  # type: ignore[misc]
    assert ModelCard.model_validate_json(card.model_dump_json()) == card
    assert '"tags":["anchor","chat","code"]' in card.model_dump_json()
    assert (card.scheme, card.location) == ("hub", "org/x")


def test_facts_fill_only_what_is_empty() -> None:
    card = ModelCard(name="x", source="hub:org/x", num_layers=2)
    filled = card.with_facts({"num_layers": 9, "hidden_size": 8, "vocab_size": None, "modality": "image"})
    assert (filled.num_layers, filled.hidden_size, filled.vocab_size, filled.modality) == (2, 8, None, "image")
    said = ModelCard(name="x", source="hub:org/x", modality="text").with_facts({"modality": "image"})
    assert said.modality == "text"
