from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from registry import ModelCard, Registry, registry
from registry.errors import CardError, RegistryError, UnknownModelError
from tests.registry import pico


@pytest.fixture(autouse=True)
def _no_models_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_GRAPH_MODELS", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_built_in_cards_carry_every_fact() -> None:
    hub = [card for card in registry if card.scheme == "hub"]
    assert len(hub) >= 28
    for card in hub:
        assert not card.missing_facts(), card.name
        assert card.tokenizer and card.tags and card.description and card.licence != "unspecified"
        assert card.num_heads % card.num_key_value_heads == 0  # type: ignore[operator]
        assert registry.get(card.name) == card


def test_built_in_cards_are_found_by_tag() -> None:
    assert {card.name for card in registry.tagged("code")} >= {"qwen2.5-coder-0.5b", "qwen2.5-coder-32b-base"}
    assert "gemma3-270m" in {card.name for card in registry.tagged("low-resource")}
    assert {card.name for card in registry.tagged("key-value")} == {"demo-prices-garden", "demo-prices-kitchen"}
    assert {card.name for card in registry.tagged("anchor", "chat")} == {
        f"smollm2-{size}-instruct" for size in ("135m", "360m", "1.7b")
    }
    assert registry.tagged("no-such-tag") == ()
    assert {"code", "anchor", "low-resource"} <= set(registry.tags())


@pytest.mark.parametrize(
    ("wrong", "near"), [("gema3-270m", "gemma3-270m"), ("SmolLM2-135M-Instruct", "smollm2-135m-instruct")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        registry.get(wrong)
    assert caught.value.nearest[0] == near and len(caught.value.nearest) <= 3
    assert str(caught.value).startswith(f"got '{wrong}', which the registry does not know; nearest: '{near}'")
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, RegistryError)
    assert wrong not in registry


def test_names_stay_unique_unless_replaced() -> None:
    mine = Registry()
    card = mine.add(ModelCard(name="x", source="folder:/a"))
    assert mine.add(ModelCard(name="x", source="folder:/a")) == card
    other = ModelCard(name="x", source="folder:/b")
    with pytest.raises(CardError, match=r"card 'x' \(folder:/b\): the registry already has this name, for folder:/a"):
        mine.add(other)
    mine.add(other, replace=True)
    assert list(mine) == [other] and len(mine) == 1 and mine.names() == ("x",)


def test_empty_facts_come_from_the_folder(tmp_path: Path) -> None:
    model = pico.make_model("llama", head=True)
    folder = pico.save(model, tmp_path / "model")
    mine = Registry([ModelCard(name="x", source=f"folder:{folder}", context_length=20)])
    card = mine.get("x")
    assert (card.architecture, card.num_layers, card.hidden_size, card.num_heads) == ("llama", 4, 16, 4)
    assert (card.num_key_value_heads, card.head_dim, card.intermediate_size) == (2, 4, 24)
    assert (card.vocab_size, card.context_length, card.causal) == (64, 20, True)
    assert card.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("architecture, width", [("mixtral", 24), ("qwen2_moe", 8), ("qwen3_moe", 8)])
def test_of_a_mixture_of_experts_a_token_goes_through_some(architecture: str, width: int, tmp_path: Path) -> None:
    folder = pico.save(pico.make_model(architecture, head=True), tmp_path / "model")
    card = Registry([ModelCard(name="x", source=f"folder:{folder}")]).get("x")
    assert card.num_parameters is not None and card.num_active_parameters is not None
    # Of 4 experts in each of 4 layers 2 do not run; an expert is three matrices.
    assert card.num_parameters - card.num_active_parameters == 4 * 2 * 3 * 16 * width
    dense = pico.save(pico.make_model("llama", head=True), tmp_path / "dense")
    assert Registry([ModelCard(name="x", source=f"folder:{dense}")]).get("x").num_active_parameters is None


def test_an_image_encoder_is_known_as_one(tmp_path: Path) -> None:
    folder = pico.save(pico.make_model("vit"), tmp_path / "model")
    card = Registry([ModelCard(name="x", source=f"folder:{folder}")]).get("x")
    assert (card.modality, card.causal, card.num_layers, card.vocab_size) == ("image", False, 4, None)


def test_facts_of_hub_cards_come_from_a_mirror_or_the_hub_cache(tmp_path: Path) -> None:
    mine = Registry([ModelCard(name="x", source="hub:org/x"), ModelCard(name="y", source="hub:org/y", revision="v2")])
    assert mine.get("x").num_layers is None
    pico.save(pico.make_model("gpt2"), tmp_path / "mirror" / "x")
    assert mine.get("x").num_layers == 4
    repository = tmp_path / "hub" / "models--org--y"
    pico.save(pico.make_model("opt"), repository / "snapshots" / "abc")
    assert mine.get("y").num_layers is None
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("abc")
    assert mine.get("y").architecture == "opt"


def test_a_saved_composition_is_described_by_its_anchor(tmp_path: Path) -> None:
    anchor = pico.make_config("llama").to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "calm_graph", "anchor_config": anchor}))
    save_file({"attachment": torch.zeros(3)}, tmp_path / "composition.safetensors")
    card = Registry([ModelCard(name="x", source=f"folder:{tmp_path}")]).get("x")
    assert (card.architecture, card.num_layers, card.hidden_size, card.causal) == ("calm_graph", 4, 16, True)
    assert card.num_parameters is None


def test_a_rewritten_config_is_read_again(tmp_path: Path) -> None:
    folder = pico.save(pico.make_model("llama"), tmp_path / "model")
    mine = Registry([ModelCard(name="x", source=f"folder:{folder}")])
    assert mine.get("x").num_layers == 4
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 11}))
    assert mine.get("x").num_layers == 11


def test_missing_files_are_no_problem_until_they_are_needed() -> None:
    card = Registry([ModelCard(name="x", source="folder:/no/such/folder")]).get("x")
    assert card.num_layers is None


def test_a_folder_of_cards(tmp_path: Path) -> None:
    pico.save(pico.make_model("llama"), tmp_path / "models" / "a")
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "source": "folder:models/a", "tags": ["key-value"]}))
    (tmp_path / "b.json").write_text(json.dumps({"name": "b", "source": "hub:org/b"}))
    (tmp_path / "notes.txt").write_text("not a card")
    mine = Registry()
    assert [card.name for card in mine.add_folder(tmp_path)] == ["a", "b"]
    assert mine.get("a").num_layers == 4
    with pytest.raises(CardError, match="no such folder of cards"):
        mine.add_folder(tmp_path / "nowhere")


def test_bad_card_files_are_all_named_with_their_fields_and_nothing_is_added(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "source": "hub:org/a"}))
    (tmp_path / "b.json").write_text(json.dumps({"name": "b", "source": "hub:org/b", "num_layer": 3}))
    (tmp_path / "c.json").write_text(json.dumps({"name": "c", "source": "nowhere", "num_heads": "many"}))
    (tmp_path / "d.json").write_text("{")
    (tmp_path / "e.json").write_text("[]")
    mine = Registry()
    with pytest.raises(CardError) as caught:
        mine.add_folder(tmp_path)
    message = str(caught.value)
    assert "b.json: unknown field 'num_layer'; did you mean 'num_layers'?" in message
    assert "c.json: source: got 'nowhere'" in message
    assert "c.json: num_heads: " in message
    assert "d.json: not readable as JSON" in message
    assert "e.json: " in message
    assert len(mine) == 0


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real installed distribution with entry points, on sys.path."""
    site = tmp_path / "site"
    info = site / "acme_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-models\nVersion: 1.0\n")
    (site / "acme_models.py").write_text(
        "from registry import ModelCard\n"
        "one = ModelCard(name='acme-one', source='folder:/one')\n"
        "def several():\n"
        "    return [ModelCard(name=f'acme-{i}', source=f'folder:/{i}') for i in (2, 3)]\n"
        "wrong = ['acme']\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield info
    sys.modules.pop("acme_models", None)


def test_cards_of_installed_packages_are_read_on_the_first_need(package: Path) -> None:
    (package / "entry_points.txt").write_text("[calm_graph.cards]\none = acme_models:one\nmore = acme_models:several\n")
    mine = Registry([ModelCard(name="x", source="folder:/x")], entry_points=True)
    mine.get("x")
    assert "acme_models" not in sys.modules
    assert mine.get("acme-2").source == "folder:/2"
    assert set(mine.names()) == {"x", "acme-one", "acme-2", "acme-3"}


def test_a_broken_package_is_named_and_stops_nothing_else(package: Path) -> None:
    (package / "entry_points.txt").write_text(
        "[calm_graph.cards]\ngone = acme_models:gone\none = acme_models:one\nwrong = acme_models:wrong\n"
    )
    mine = Registry([ModelCard(name="x", source="folder:/x")], entry_points=True)
    with pytest.warns(RuntimeWarning) as warned:
        assert set(mine.names()) == {"x", "acme-one"}
    assert "entry point 'gone' (acme_models:gone) of acme-models is broken: " in str(warned[0].message)
    assert "entry point 'wrong' (acme_models:wrong) of acme-models is broken: " in str(warned[1].message)
    with pytest.raises(UnknownModelError, match="entry point 'gone'"):
        mine.get("zzz")
    with pytest.raises(CardError) as caught:
        Registry().load_entry_points()
    assert "TypeError: expected ModelCard, got str" in str(caught.value)
    assert "AttributeError" in str(caught.value)
