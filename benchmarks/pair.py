"""The pair of models that the training benchmarks compose: random Gemmas, a larger and a smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from benchmarks import shapes
from calm_graph.augmenters.taps import BlockCall, during
from calm_graph.data.samples import IGNORED, Batch
from calm_graph.declare.composition import Attachment, Augmenter, Composition
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.model.stored import StoredStates
from registry import ModelCard, Registry


def make_pair(folder: Path, *, text: Sequence[str] = ()) -> ComposedModel:
    """Write both models and compose them.

    Args:
        folder: Where they are written.
        text: What their tokenizer learns from; without any it knows bytes only.

    Returns:
        A model in float32 with fresh attachments.
    """
    registry = Registry()
    tokenizer = _tokenizer(text)
    for seed, (name, sizes) in enumerate((("anchor", shapes.ANCHOR), ("augmenter", shapes.AUGMENTER))):
        torch.manual_seed(seed)
        model = GemmaForCausalLM(gemma_config(sizes))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        registry.add(ModelCard(name=name, source=f"folder:{folder / name}"))
    attach = [Attachment(augmenter_layer=below, anchor_layer=above) for below, above in shapes.ATTACHED]
    composition = Composition(name="pair", anchor="anchor", augmenters=[Augmenter("augmenter", attach=attach)])
    return build_model(composition, registry=registry, seed=0)


def gemma_config(sizes: dict[str, int]) -> GemmaConfig:
    """What both models share."""
    shared = {
        "vocab_size": shapes.VOCAB_SIZE,
        "num_attention_heads": shapes.NUM_HEADS,
        "num_key_value_heads": shapes.NUM_HEADS,
        "head_dim": shapes.HEAD_DIM,
        "intermediate_size": shapes.INTERMEDIATE_SIZE,
        "max_position_embeddings": shapes.CONTEXT_LENGTH,
        "tie_word_embeddings": True,
    }
    config: GemmaConfig = GemmaConfig.from_dict({**shared, **sizes})
    return config


def full_batch(ids_BT: torch.Tensor) -> Batch:
    """Rows without padding or prompt: every token but the first is predicted."""
    labels_BT = ids_BT.clone()
    labels_BT[:, 0] = IGNORED
    return Batch(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT, dtype=torch.bool),
        labels=labels_BT,
        prompt_lengths=torch.zeros(len(ids_BT), dtype=torch.int64),
        prompt_texts=[""] * len(ids_BT),
        augmenter_inputs={},
    )


@torch.no_grad()
def with_stored_states(model: ComposedModel, batch: Batch) -> Batch:
    """Return the batch of the pair with what its frozen models say about it, up to the first attached layer."""
    run = model.plan.runs[0]
    real_BT = batch["attention_mask"]
    read = model.graph.backend(run.name).read_tokens(
        batch["input_ids"], real_BT, known_at_BS=real_BT.long().cumsum(1) - 1, taps=frozenset(run.taps), writes={}
    )
    first = model.plan.first_attached_layer
    call = BlockCall(taps=frozenset([first]))
    with during(call):
        model.anchor(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=1)
    lengths_B = real_BT.sum(dim=1)
    stored = {
        name: StoredStates(
            layers=tuple(states),
            lengths_B=lengths_B,
            states_RLC=torch.stack([states_BTC[real_BT] for states_BTC in states.values()], dim=1),
        )
        for name, states in ((run.name, read), (model.plan.anchor.name, call.states))
    }
    return {**batch, "stored_states": stored}


def random_ids(num_rows: int = shapes.BATCH_SIZE, num_tokens: int = shapes.NUM_TOKENS) -> torch.Tensor:
    """Token ids, int64 [B, T]."""
    return torch.randint(3, shapes.VOCAB_SIZE, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))


def _tokenizer(text: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shapes.VOCAB_SIZE,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
