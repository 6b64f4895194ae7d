from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from registry import ModelCard, layouts, registry, weights
from registry.errors import FactMismatchError, FingerprintError, WeightsError
from registry.fingerprint import fingerprint
from registry.sources import read_facts
from tests.registry import pico
from tests.registry.gguf_files import write_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pico.save(pico.make_model("llama", head=True), tmp_path / "model")


def card(source: Path, **facts: object) -> ModelCard:
    scheme = "gguf" if source.suffix == ".gguf" else "folder"
    return ModelCard.model_validate({"name": "pico", "source": f"{scheme}:{source}", **facts})


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_causal_lm_comes_back_frozen_and_equal(folder: Path) -> None:
    original = pico.make_model("llama", head=True)
    model = weights.load_causal_lm(card(folder))
    inputs = pico.make_inputs("text")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, original(**inputs).logits)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_dtype_is_that_of_the_file_unless_asked(tmp_path: Path) -> None:
    folder = pico.save(pico.make_model("llama").to(torch.bfloat16), tmp_path / "half")
    assert weights.load_body(card(folder), 2).dtype == torch.bfloat16
    assert weights.load_body(card(folder), 2, dtype=torch.float32).dtype == torch.float32
    assert weights.load_body(card(folder), dtype=torch.float16).dtype == torch.float16


def test_loading_a_part_is_silent(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    level = logger.level
    weights.load_body(card(folder), 1)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logger.level == level


def test_blocks_that_are_cut_off_are_never_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.3." not in name}
    save_file(kept, file, metadata={"format": "pt"})
    assert len(layouts.blocks(weights.load_body(card(folder), 3))) == 3
    with pytest.raises(WeightsError, match=r"lacks 9 tensors of llama: .*layers\.3\..* and 4 more"):
        weights.load_body(card(folder), 4)
    with pytest.raises(WeightsError, match=r"lacks 9 tensors"):
        weights.load_causal_lm(card(folder))


@pytest.mark.parametrize("num_layers", [0, 5])
def test_a_depth_that_the_model_does_not_have(folder: Path, num_layers: int) -> None:
    with pytest.raises(WeightsError, match=rf"card 'pico': num_layers: got {num_layers}, but llama has 4 blocks"):
        weights.load_body(card(folder), num_layers)


def test_a_checkpoint_with_another_head_still_gives_its_body(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_config(pico.make_config("bert"))
    body = weights.load_body(card(pico.save(model, tmp_path / "bert")), 2)
    assert not [name for name, _ in body.named_parameters() if "pooler" in name]  # it would be random


def test_an_encoder_is_no_anchor(tmp_path: Path) -> None:
    folder = pico.save(pico.make_model("bert"), tmp_path / "bert")
    with pytest.raises(WeightsError, match="bert is an encoder, not a causal language model"):
        weights.load_causal_lm(card(folder))


def test_of_a_multimodal_wrapper_only_the_text_model_is_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(pico.make_config("gemma3")).eval()
    folder = pico.save(whole, tmp_path / "gemma3")
    inputs = pico.make_inputs("text")
    model = weights.load_causal_lm(card(folder, architecture="gemma3_text", num_layers=4))
    assert type(model).__name__ == "Gemma3ForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, whole(**inputs).logits, rtol=0, atol=0)
    body = weights.load_body(card(folder), 2)
    assert type(body).__name__ == "Gemma3TextModel" and len(layouts.blocks(body)) == 2
    # Hub files have had three spellings of the same names.
    file = folder / "model.safetensors"
    tensors = load_file(file)
    text = {name.split("layers.0.")[0] for name in tensors if "layers.0." in name and "vision" not in name}
    assert len(text) == 1
    old = text.pop()
    for new in ("language_model.model.", "model.language_model.", "language_model."):
        renamed = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
        save_file(renamed, file, metadata={"format": "pt"})
        again = weights.load_causal_lm(card(folder))
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_all_wrong_facts_are_named_with_both_values(folder: Path) -> None:
    wrong = card(folder, num_layers=6, hidden_size=16, vocab_size=65, architecture="qwen2", context_length=99)
    with pytest.raises(FactMismatchError) as caught:
        weights.load_body(wrong, 2)
    assert str(caught.value).splitlines() == [
        f"card 'pico' does not describe the model in folder:{folder}:",
        "  architecture: the card says 'qwen2', the config says 'llama'",
        "  num_layers: the card says 6, the config says 4",
        "  vocab_size: the card says 65, the config says 64",
        "  context_length: the card says 99, the config says 48",
    ]
    weights.load_config(card(folder, context_length=20))  # a shorter context is the owner's choice


def test_a_recorded_fingerprint_is_verified(folder: Path) -> None:
    recorded = card(folder, fingerprint=fingerprint(folder))
    weights.load_body(recorded, 1)
    pico.make_model("llama", head=True, seed=1).save_pretrained(folder)
    with pytest.raises(FingerprintError) as caught:
        weights.load_body(recorded, 1)
    assert str(recorded.fingerprint) in str(caught.value) and fingerprint(folder) in str(caught.value)


def test_files_that_can_run_code_are_refused(folder: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    weights.load_body(card(folder), 1)  # beside safetensors it is simply not looked at
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has only pytorch_model\.bin.*can run code.*save_pretrained"):
        weights.load_body(card(folder), 1)


def test_code_in_the_folder_is_not_run_unless_the_card_trusts_it(folder: Path) -> None:
    proof = folder / "ran"
    (folder / "evil.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(proof)!r}, 'w').close()\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="card 'pico': transformers cannot use the config"):
        weights.load_config(card(folder))
    assert not proof.exists()
    weights.load_config(card(folder, trust_remote_code=True))
    assert proof.exists()


def test_incomplete_files_are_told_as_such(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size, message in ((len(whole) - 10, "truncated"), (100, "not a whole safetensors file"), (3, "not a whole")):
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=message):
            weights.load_body(card(folder), 1)
    file.unlink()
    with pytest.raises(WeightsError, match=r"has no \*\.safetensors file"):
        weights.load_body(card(folder), 1)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    pico.make_model("llama", head=True).save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    weights.load_causal_lm(card(tmp_path))
    shards[1].unlink()
    with pytest.raises(WeightsError, match=rf"lacks {shards[1].name}"):
        weights.load_causal_lm(card(tmp_path))


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM_GRAPH_MODELS", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match=r"no config\.json there; correct the card's source"):
        weights.find_files(card(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="no such file; correct the card's source"):
        weights.find_files(card(tmp_path / "nothing.gguf"))
    with pytest.raises(WeightsError, match=r"registry/embedded/nothing: no config\.json"):
        weights.find_files(ModelCard(name="x", source="embedded:nothing"))
    with pytest.raises(WeightsError, match=r"is not on this machine.*Put its folder at .*mirror/gemma3-27b"):
        weights.find_files(registry.get("gemma3-27b"))


def test_a_model_without_a_tokenizer(folder: Path) -> None:
    with pytest.raises(WeightsError, match="card 'pico': no usable tokenizer"):
        weights.load_tokenizer(card(folder))


def test_a_gguf_file_gives_the_same_model_and_facts(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = pico.make_model("llama", head=True)
    file = write_gguf(model, tmp_path / "pico.gguf")
    found = card(file)
    facts = layouts.facts(weights.load_config(found).to_dict())
    read = read_facts(found)
    assert {name: value for name, value in read.items() if name != "num_parameters"} == {
        name: value for name, value in facts.items() if name != "num_parameters"
    }
    assert (read["num_layers"], read["num_key_value_heads"], read["context_length"]) == (4, 2, 48)
    assert read["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    inputs = pico.make_inputs("text")
    with torch.no_grad():
        loaded = weights.load_causal_lm(found, dtype=torch.float32)
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
        body = weights.load_body(found, 2, dtype=torch.float32)
    assert len(layouts.blocks(body)) == 2
    assert "quantization_config" not in body.config.to_dict()
    again = weights.load_body(card(pico.save(body, tmp_path / "saved")))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), body.parameters(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(body.layers.parameters(), loaded.model.layers[:2].parameters(), strict=True)
    )
    assert weights.load_tokenizer(found)("ab")["input_ids"] == [5]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError):
        weights.load_body(found, 2)


@pytest.mark.realmodels
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-0.5b"])
def test_built_in_cards_describe_the_real_models(name: str, models_dir: Path) -> None:
    found = registry.get(name)
    body = weights.load_body(found, 2)
    assert len(layouts.blocks(body)) == 2
    assert body.dtype == torch.bfloat16
    assert weights.load_config(found).num_hidden_layers == found.num_layers
