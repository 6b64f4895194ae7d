"""The only home of foreign names: where each architecture keeps its blocks and what its config calls things."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from registry.errors import UnknownLayoutError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One row of the table. The defaults are the names that most decoders share; a row says what differs."""

    blocks: str = "layers"
    """Path of the `ModuleList` of blocks inside the base model (`AutoModel`)."""
    num_layers: str = "num_hidden_layers"
    hidden_size: str = "hidden_size"
    num_heads: str = "num_attention_heads"
    num_key_value_heads: str = "num_key_value_heads"
    intermediate_size: str = "intermediate_size"
    context_length: str | None = "max_position_embeddings"
    num_reserved_positions: int = 0
    """Entries of the position table that no token can use."""
    tuple_blocks: bool = False
    """Whether blocks return their output as the first of two values."""
    causal: bool = True
    modality: Literal["text", "image", "features"] = "text"
    inner: str | None = None
    """Key of the nested config that describes the text model, for a multimodal wrapper."""
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions that turn a wrapper's tensor names into those of its text model with a head."""
    load_arguments: Mapping[str, bool] = field(default_factory=dict)
    """Arguments of the base model's class that leave out what no attachment reads."""
    optional_tensors: tuple[str, ...] = ()
    """Tensors that published weights may lack, because only training uses them."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Values of the config class that published configs leave out (nested configs are saved as differences)."""
    num_norms: int = 2
    """Norms of a block that read states of the model's width; training keeps what each of them reads."""
    norms_queries: bool = False
    """Whether queries and keys are normalised, too."""
    pairwise_masks: bool = True
    """Whether it takes a mask of pairs of tokens, float [B, 1, S, L]; ALiBi counts distances in a mask of tokens."""


_DECODER = Layout()
_NORMED_QUERIES = Layout(norms_queries=True)
_PARALLEL = Layout(num_norms=1)  # attention and MLP read the same normalised states
_GPT2 = Layout(
    blocks="h",
    num_layers="n_layer",
    hidden_size="n_embd",
    num_heads="n_head",
    intermediate_size="n_inner",
    context_length="n_positions",
)
_NO_POOLER = {"add_pooling_layer": False}
_BERT = Layout(blocks="encoder.layer", causal=False, load_arguments=_NO_POOLER)
_ROBERTA = replace(_BERT, num_reserved_positions=2)
_VISION = Layout(blocks="encoder.layers", causal=False, modality="image", context_length=None)
_SPEECH = replace(_VISION, modality="features", optional_tensors=("masked_spec_embed",))
_GEMMA3 = Layout(
    num_norms=4,
    norms_queries=True,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    },
)

LAYOUTS: Mapping[str, Layout] = {
    "apertus": _NORMED_QUERIES,
    "arcee": _DECODER,
    "bert": _BERT,
    "bloom": Layout(
        blocks="h",
        num_layers="n_layer",
        num_heads="n_head",
        context_length=None,
        tuple_blocks=True,
        pairwise_masks=False,
    ),
    "clip_vision_model": _VISION,
    "cohere": _PARALLEL,
    "cohere2": _PARALLEL,
    "dinov2": replace(_VISION, blocks="encoder.layer"),
    "distilbert": Layout(
        blocks="transformer.layer",
        num_layers="n_layers",
        hidden_size="dim",
        num_heads="n_heads",
        intermediate_size="hidden_dim",
        causal=False,
    ),
    "electra": Layout(blocks="encoder.layer", causal=False),
    "exaone4": _NORMED_QUERIES,
    "falcon": Layout(
        blocks="h",
        num_key_value_heads="num_kv_heads",
        intermediate_size="ffn_hidden_size",
        num_norms=1,
        tuple_blocks=True,
        pairwise_masks=False,
    ),
    "gemma": _DECODER,
    "gemma2": Layout(num_norms=4),
    "gemma3": Layout(
        blocks="language_model.layers",
        inner="text_config",
        key_mapping={r"^(model\.)?language_model\.(model\.)?": "model.", r"^model\.lm_head": "lm_head"},
        num_norms=4,
        norms_queries=True,
    ),
    "gemma3_text": _GEMMA3,
    "glm": _DECODER,
    "glm4": Layout(num_norms=4),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _DECODER,
    "gptj": replace(_GPT2, num_norms=1, tuple_blocks=True),
    "granite": _DECODER,
    "helium": _DECODER,
    "hubert": _SPEECH,
    "llama": _DECODER,
    "ministral": _DECODER,
    "mistral": _DECODER,
    "mixtral": _DECODER,
    "modernbert": Layout(causal=False),
    "mpt": Layout(
        blocks="blocks",
        num_layers="n_layers",
        hidden_size="d_model",
        num_heads="n_heads",
        context_length="max_seq_len",
        tuple_blocks=True,
        pairwise_masks=False,
    ),
    "olmo": _DECODER,
    "olmo2": _NORMED_QUERIES,
    "olmo3": _NORMED_QUERIES,
    "opt": Layout(blocks="decoder.layers", intermediate_size="ffn_dim"),
    "persimmon": _NORMED_QUERIES,
    "phi": _PARALLEL,
    "phi3": _DECODER,
    "qwen2": _DECODER,
    "qwen2_moe": _DECODER,
    "qwen3": _NORMED_QUERIES,
    "qwen3_moe": _NORMED_QUERIES,
    "roberta": _ROBERTA,
    "siglip_vision_model": _VISION,
    "smollm3": _DECODER,
    "stablelm": _DECODER,
    "starcoder2": _DECODER,
    "vit": replace(_VISION, blocks="layers", load_arguments=_NO_POOLER),
    "wav2vec2": _SPEECH,
    "xlm-roberta": _ROBERTA,
}

COMPOSITION = "calm_graph"
"""`model_type` of a saved composition, whose facts are those of its anchor."""

_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "attention_layers", "intermediate_size")

EXPERTS = ".experts."
"""In the names of tensors of which a token goes through some experts only; shared experts are called otherwise."""

# Names that configs outside the table use, tried in this order.
_ALIASES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_NUM_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config dict that describes the text model; the config itself when it is not nested."""
    if config.get("model_type") == COMPOSITION:
        return text_config(config.get("anchor_config") or {})
    layout = LAYOUTS.get(str(config.get("model_type")))
    key = layout.inner if layout else "text_config"
    inner = config.get(key) if key else None
    if isinstance(inner, Mapping) and "num_hidden_layers" not in config:
        return {"model_type": f"{config.get('model_type')}_text", **inner}
    return config


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a card's facts from a config dict.

    Args:
        config: the content of a config.json, of an architecture in the table or of any other.

    Returns:
        Values by card field; None where the config does not say.
    """
    text = text_config(config)
    architecture = text.get("model_type")
    layout = LAYOUTS.get(str(architecture))

    def value(fact: str) -> Any:
        keys = _ALIASES[fact] if layout is None else (getattr(layout, fact),)
        for key in keys:
            found = text.get(key) if text.get(key) is not None else layout and layout.defaults.get(key)
            if found is not None:
                return max(found) if isinstance(found, list) else found
        return None

    hidden_size, num_heads, context_length = value("hidden_size"), value("num_heads"), value("context_length")
    is_text = layout is None or layout.modality == "text"
    defaults = layout.defaults if layout else {}
    found = {
        "architecture": COMPOSITION if config.get("model_type") == COMPOSITION else architecture,
        "num_layers": value("num_layers"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_key_value_heads": value("num_key_value_heads") or num_heads,
        "head_dim": text.get("head_dim") or defaults.get("head_dim"),
        "intermediate_size": value("intermediate_size") or (hidden_size and 4 * hidden_size),
        "vocab_size": (text.get("vocab_size") or defaults.get("vocab_size")) if is_text else None,
        "context_length": context_length and context_length - (layout.num_reserved_positions if layout else 0),
        "num_parameters": config.get("num_parameters"),
        "causal": True if config.get("model_type") == COMPOSITION else is_causal(config),
    }
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        found["num_key_value_heads"] = 1
    if found["head_dim"] is None and hidden_size and num_heads:
        found["head_dim"] = hidden_size // num_heads
    if layout is not None:
        found["modality"] = layout.modality
    return found


def expert_share(config: Mapping[str, Any]) -> float | None:
    """Return which share of its experts a token goes through, 0 to 1; None where a config does not say."""
    text = text_config(config)

    def count(keys: tuple[str, ...]) -> int:
        return next((int(text[key]) for key in keys if text.get(key)), 0)

    per_token, total = count(_NUM_EXPERTS_PER_TOKEN), count(_NUM_EXPERTS)
    return min(1.0, per_token / total) if per_token and total else None


def is_causal(config: Mapping[str, Any]) -> bool | None:
    """Tell whether position t of the model sees only positions <= t; None for an architecture that is not known."""
    text = text_config(config)
    layout = LAYOUTS.get(str(text.get("model_type")))
    if text.get("is_causal") is False or text.get("use_bidirectional_attention"):
        return False  # decoders turned into embedding models say so
    if layout is not None:
        return layout.causal or bool(text.get("is_decoder"))
    classes = config.get("architectures") or text.get("architectures") or ()
    return True if any(str(name).endswith("ForCausalLM") for name in classes) else None


def config_from_gguf(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write the metadata of a GGUF file as a config dict with this table's key names.

    Args:
        values: GGUF fields by name, `general.architecture`, `llama.block_count`, ...
    """
    name = str(values.get("general.architecture"))
    architecture = {"gemma3": "gemma3_text"}.get(name, name)  # a GGUF file holds the text model only
    layout = LAYOUTS.get(architecture, _DECODER)
    keys = {
        "block_count": layout.num_layers,
        "embedding_length": layout.hidden_size,
        "attention.head_count": layout.num_heads,
        "attention.head_count_kv": layout.num_key_value_heads,
        "attention.key_length": "head_dim",
        "feed_forward_length": layout.intermediate_size,
        "context_length": layout.context_length,
        "vocab_size": "vocab_size",
    }
    config = {"model_type": architecture, "vocab_size": values.get("vocab_size")}
    for gguf_name, key in keys.items():
        if key and f"{name}.{gguf_name}" in values:
            config[key] = values[f"{name}.{gguf_name}"]
    config["num_parameters"] = values.get("num_parameters")
    return config


def truncated(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Return a copy of `config` for a model of its first `num_layers` blocks only.

    Args:
        config: a config of any architecture; a multimodal wrapper keeps its other parts.
        num_layers: how many blocks to keep, 1 to the config's own number.

    Raises:
        ValueError: `num_layers` is out of that range.
    """
    shorter = copy.deepcopy(config)
    layout = LAYOUTS.get(config.model_type)
    text = getattr(shorter, layout.inner) if layout and layout.inner else shorter
    inner_layout = LAYOUTS.get(text.model_type)
    key = inner_layout.num_layers if inner_layout else "num_hidden_layers"
    total = int(getattr(text, key))
    if not 1 <= num_layers <= total:
        raise ValueError(f"num_layers: got {num_layers}, but {text.model_type} has {total} blocks; ask for 1..{total}")
    setattr(text, key, num_layers)
    for name in _PER_LAYER_LISTS:
        if isinstance(values := getattr(text, name, None), (list, tuple)) and len(values) == total:
            setattr(text, name, values[:num_layers])
    shared = getattr(text, "num_kv_shared_layers", 0) or 0
    if shared:  # the last blocks borrow keys and values of earlier ones; fewer of them are left
        text.num_kv_shared_layers = max(0, num_layers - (total - shared))
    return shorter


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a transformers model, base model or with a head.

    Raises:
        UnknownLayoutError: the table has no row for this architecture, and no single list of blocks was found.
    """
    config = getattr(model, "config", None)
    architecture = getattr(config, "model_type", None)
    layout = LAYOUTS.get(str(architecture))
    base: nn.Module = getattr(model, "base_model", model)
    if layout is not None:
        return cast("nn.ModuleList", base.get_submodule(layout.blocks))
    num_layers = getattr(config, "num_hidden_layers", None)
    candidates = _lists_of_length(base, num_layers)
    if len(candidates) != 1:
        seen = f"candidates: {', '.join(candidates)}" if candidates else "no list of modules has that length"
        raise UnknownLayoutError(
            f"{type(model).__name__} ({architecture!r}, num_hidden_layers={num_layers}): cannot tell where its blocks "
            f"are; {seen}. Add a row to LAYOUTS in registry/layouts.py that names the path. "
            f"Known: {', '.join(LAYOUTS)}"
        )
    return next(iter(candidates.values()))


def _lists_of_length(base: nn.Module, length: int | None) -> dict[str, nn.ModuleList]:
    from torch import nn

    found: dict[str, nn.ModuleList] = {}
    for path, module in base.named_modules():
        inside_another = any(path.startswith(f"{other}.") for other in found)
        if isinstance(module, nn.ModuleList) and len(module) == length and not inside_another:
            found[path] = module
    return found
