"""Pico models of every architecture in the table, made from config objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

NUM_LAYERS = 4
VOCAB_SIZE = 64

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "num_hidden_layers": NUM_LAYERS,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2: dict[str, Any] = {
    "n_layer": NUM_LAYERS,
    "n_embd": 16,
    "n_head": 4,
    "n_positions": 48,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_VISION = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_hidden_layers": NUM_LAYERS,
    "image_size": 16,
    "patch_size": 8,
}
_SPEECH = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_hidden_layers": NUM_LAYERS,
    "conv_dim": [8, 8],
    "conv_stride": [4, 4],
    "conv_kernel": [8, 8],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
_ALTERNATING = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]}

# What differs from _SIZES, or everything when the entry has its own name for the number of layers.
_SPECIAL: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": NUM_LAYERS, "hidden_size": 16, "n_head": 4, "vocab_size": VOCAB_SIZE},
    "clip_vision_model": _VISION,
    "dinov2": _VISION,
    "distilbert": {
        "n_layers": NUM_LAYERS,
        "dim": 16,
        "n_heads": 4,
        "hidden_dim": 24,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 48,
    },
    "falcon": {key: value for key, value in _SIZES.items() if key not in ("head_dim", "num_key_value_heads")},
    "gemma2": _SIZES | _ALTERNATING,
    "gemma3_text": _SIZES | _ALTERNATING | {"sliding_window": 4},
    "gemma3": {
        "text_config": _SIZES | _ALTERNATING | {"sliding_window": 4},
        "vision_config": _VISION | {"vision_use_head": False},
        "mm_tokens_per_image": 4,
        "image_token_index": 60,
        "image_token_id": 60,
        "boi_token_index": 61,
        "eoi_token_index": 62,
    },
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "hubert": _SPEECH,
    "mixtral": _SIZES | {"num_local_experts": 4},
    "mpt": {"n_layers": NUM_LAYERS, "d_model": 16, "n_heads": 4, "max_seq_len": 48, "vocab_size": VOCAB_SIZE},
    "opt": _SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "qwen2_moe": _SIZES | _EXPERTS | {"shared_expert_intermediate_size": 8},
    "qwen3_moe": _SIZES | _EXPERTS,
    "siglip_vision_model": _VISION,
    "smollm3": _SIZES | {"no_rope_layers": [1, 1, 0, 1]},
    "vit": _VISION,
    "wav2vec2": _SPEECH,
}


def make_config(architecture: str) -> PreTrainedConfig:
    sizes = _SPECIAL.get(architecture, _SIZES)
    config: PreTrainedConfig = AutoConfig.for_model(architecture, **sizes)
    return config


def make_model(architecture: str, *, head: bool = False, seed: int = 0) -> PreTrainedModel:
    """Return a model in eval mode; `head` asks for the causal LM."""
    torch.manual_seed(seed)
    factory = AutoModelForCausalLM if head else AutoModel
    model: PreTrainedModel = factory.from_config(make_config(architecture)).eval()
    # Fresh initialisers are nearly the identity, which would hide a block that was skipped.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def make_inputs(modality: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if modality == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if modality == "features":
        return {"input_values": torch.randn(2, 400, generator=generator)}
    return {"input_ids": torch.randint(3, 50, (2, 9), generator=generator)}
