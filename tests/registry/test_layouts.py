from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, PreTrainedModel

from registry import ModelCard, layouts, weights
from registry.errors import UnknownLayoutError
from tests.registry import pico


def block_outputs(model: PreTrainedModel, modality: str) -> list[torch.Tensor]:
    """Run the model and return what left each block, in order."""
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())  # type: ignore[attr-defined,index]

    handles = [block.register_forward_hook(keep) for block in layouts.blocks(model)]
    with torch.no_grad():
        model(**pico.make_inputs(modality))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("architecture", sorted(layouts.LAYOUTS))
def test_a_truncated_body_computes_what_the_full_one_does_at_its_last_block(architecture: str, tmp_path: Path) -> None:
    full = pico.make_model(architecture)
    folder = pico.save(full, tmp_path / "model")
    modality = layouts.LAYOUTS[architecture].modality
    card = ModelCard(name="pico", source=f"folder:{folder}")
    expected = block_outputs(full, modality)
    assert len(expected) == pico.NUM_LAYERS
    for num_layers in (3, pico.NUM_LAYERS):
        body = weights.load_body(card, num_layers)
        found = block_outputs(body, modality)
        assert len(found) == len(layouts.blocks(body)) == num_layers
        for position in range(num_layers):
            torch.testing.assert_close(found[position], expected[position], rtol=0, atol=0)
    assert len({layer.sum().item() for layer in expected}) == pico.NUM_LAYERS  # blocks do differ


@pytest.mark.parametrize("architecture", sorted(layouts.LAYOUTS))
def test_facts_read_from_a_written_config_are_those_of_the_model(architecture: str, tmp_path: Path) -> None:
    model = pico.make_model(architecture)
    facts = layouts.facts(json.loads((pico.save(model, tmp_path) / "config.json").read_text()))
    layout = layouts.LAYOUTS[architecture]
    assert facts["architecture"] == ("gemma3_text" if architecture == "gemma3" else architecture)
    assert facts["num_layers"] == pico.NUM_LAYERS
    assert facts["hidden_size"] == 16
    assert facts["num_heads"] == 4
    assert facts["head_dim"] == 4
    assert facts["causal"] == layout.causal
    assert facts["modality"] == layout.modality
    if layout.modality == "text":
        assert facts["vocab_size"] == model.get_input_embeddings().weight.shape[0]
        reserved = layout.num_reserved_positions
        assert facts["context_length"] == (None if architecture == "bloom" else 48 - reserved)
    else:
        assert facts["vocab_size"] is facts["context_length"] is None


# Two kinds of Falcon share a row, and OLMo's norms and ModernBERT's first one have no weight to tell them by.
@pytest.mark.parametrize("architecture", sorted(set(layouts.LAYOUTS) - {"falcon", "olmo", "modernbert"}))
def test_norms_of_a_block_are_counted(architecture: str) -> None:
    model = pico.make_model(architecture)
    block, row = layouts.blocks(model)[0], layouts.LAYOUTS[architecture]
    norms = {name for name, module in block.named_modules() if "Norm" in type(module).__name__}
    of_queries = {name for name in norms if name.rpartition(".")[2].startswith(("q_", "k_"))}
    assert len(norms - of_queries) == row.num_norms
    assert bool(of_queries) == row.norms_queries


@pytest.mark.parametrize("architecture", [name for name, row in layouts.LAYOUTS.items() if row.causal])
def test_blocks_are_found_below_a_language_model_head(architecture: str, tmp_path: Path) -> None:
    model = pico.make_model(architecture, head=True)
    assert len(layouts.blocks(model)) == pico.NUM_LAYERS
    assert layouts.blocks(model)[0] is layouts.blocks(model.base_model)[0]


def test_causality_follows_the_switches_of_the_config() -> None:
    assert layouts.is_causal({"model_type": "llama"}) is True
    assert layouts.is_causal({"model_type": "bert"}) is False
    assert layouts.is_causal({"model_type": "bert", "is_decoder": True}) is True
    assert layouts.is_causal({"model_type": "qwen2", "is_causal": False}) is False
    assert layouts.is_causal({"model_type": "gemma3_text", "use_bidirectional_attention": True}) is False
    assert layouts.is_causal({"model_type": "new", "architectures": ["NewForCausalLM"]}) is True
    assert layouts.is_causal({"model_type": "new"}) is None


def test_a_nested_config_is_read_with_the_defaults_that_hub_files_leave_out() -> None:
    published = {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    }
    facts = layouts.facts(published)
    real = AutoConfig.for_model(**published).get_text_config()
    assert facts["num_layers"] == 34
    assert facts["num_heads"] == real.num_attention_heads == 8
    assert facts["num_key_value_heads"] == real.num_key_value_heads == 4
    assert facts["head_dim"] == real.head_dim == 256
    assert facts["vocab_size"] == real.vocab_size == 262_208
    assert facts["context_length"] == real.max_position_embeddings == 131_072


def test_a_saved_composition_has_the_facts_of_its_anchor() -> None:
    anchor = LlamaConfig(num_hidden_layers=7, hidden_size=32, num_attention_heads=4).to_dict()
    facts = layouts.facts({"model_type": "calm_graph", "anchor_config": anchor})
    assert (facts["architecture"], facts["num_layers"], facts["hidden_size"]) == ("calm_graph", 7, 32)
    assert facts["causal"] is True


def test_multi_query_models_have_one_key_value_head() -> None:
    facts = layouts.facts({"model_type": "falcon", "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True})
    assert facts["num_key_value_heads"] == 1


def test_an_architecture_outside_the_table_works_when_its_blocks_are_unmistakable() -> None:
    assert "nanochat" not in layouts.LAYOUTS
    model = AutoModel.from_config(AutoConfig.for_model("nanochat", **pico._SIZES))
    assert len(layouts.blocks(model)) == pico.NUM_LAYERS


def test_ambiguous_blocks_are_an_error_that_says_how_to_add_a_row() -> None:
    config = AutoConfig.for_model("t5", d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, vocab_size=64)
    model = AutoModel.from_config(config)
    with pytest.raises(UnknownLayoutError, match=r"'t5'.*encoder\.block, decoder\.block.*Add a row to LAYOUTS.*llama"):
        layouts.blocks(model)


def test_truncation_copies_and_refuses_impossible_numbers() -> None:
    config = pico.make_config("gemma3_text")
    shorter = layouts.truncated(config, 3)
    assert (shorter.num_hidden_layers, len(shorter.layer_types)) == (3, 3)
    assert (config.num_hidden_layers, len(config.layer_types)) == (4, 4)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=rf"num_layers: got {wrong}, but gemma3_text has 4 blocks; ask for 1\.\.4"):
            layouts.truncated(config, wrong)
