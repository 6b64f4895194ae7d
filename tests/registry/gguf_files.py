"""A pico Llama written as a GGUF file, the way llama.cpp's converter does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OTHER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(model: PreTrainedModel, file: Path) -> Path:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(
        ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ"] + [f"t{i}" for i in range(7, config.vocab_size)]
    )
    writer.add_token_types([3, 3, 3] + [1] * (config.vocab_size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        module = name.removesuffix(".weight")
        if module in _OTHER:
            writer.add_tensor(f"{_OTHER[module]}.weight", array)
            continue
        _, _, index, inner = module.split(".", 3)
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if inner in heads:  # llama.cpp interleaves the halves that rotary embedding pairs up
            rows, columns = array.shape
            paired = array.reshape(heads[inner], 2, rows // heads[inner] // 2, columns)
            array = np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))
        writer.add_tensor(f"blk.{index}.{_BLOCK[inner]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
