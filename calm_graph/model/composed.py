"""The composed model: a frozen anchor that reads frozen augmenters through trained attachments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from calm_graph.augmenters.taps import BlockCall, Start, Write, during, recomputing, up_to, watch, watch_head
from calm_graph.errors import InputError
from calm_graph.model.augmenter_graph import AugmenterGraph, AugmenterInputs
from calm_graph.model.cache import ComposedCache
from calm_graph.model.config import CalmGraphConfig
from calm_graph.model.generation import ComposedGeneration
from calm_graph.model.inputs import check_tokens
from calm_graph.model.losses import divergence, next_token, supervised_positions
from calm_graph.model.pretrained import PretrainedMixin
from calm_graph.model.scales import Scale
from calm_graph.model.stored import StoredStates
from calm_graph.model.tokens import AnchorTokens
from calm_graph.model.told import differences
from calm_graph.plan.parts import Plan
from registry import ModelCard
from registry.layouts import LAYOUTS, blocks

_BY_ROW = ("input_ids", "attention_mask", "position_ids")


class ComposedModel(PretrainedMixin, ComposedGeneration, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A causal language model made of frozen models and trained attachments.

    Use `build_model` or `from_pretrained`; the constructor takes parts that are loaded already.

    Args:
        config: What transformers wants to know.
        anchor: The frozen causal language model.
        graph: The frozen augmenters and the attachments.
        tokenizer: The anchor's tokenizer.
        checkpoints: Cards of the trained compositions among its augmenters.
    """

    config_class = CalmGraphConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(
        self,
        config: CalmGraphConfig,
        *,
        anchor: PreTrainedModel,
        graph: AugmenterGraph,
        tokenizer: Any,
        checkpoints: Iterable[ModelCard] = (),
    ) -> None:
        super().__init__(config)
        self.anchor = anchor
        self.graph = graph
        self.tokenizer = tokenizer
        self.checkpoints = tuple(checkpoints)
        watch(blocks(anchor))
        watch_head(anchor.get_output_embeddings())
        self._recomputes = False
        self._anchor_takes = frozenset(inspect.signature(anchor.forward).parameters)
        self.requires_grad_(False)
        for planned in self.plan.attachments:
            self.attachments[planned.key].requires_grad_(planned.trainable)
        self.generation_config = anchor.generation_config
        self.post_init()  # type: ignore[no-untyped-call]
        self.train(False)

    @property
    def plan(self) -> Plan:
        """What runs, how deep, and what reads what."""
        return self.graph.plan

    @property
    def attachments(self) -> nn.ModuleDict:
        """The attachments by key: the only trainable part."""
        return self.graph.edges.attachments

    def init_weights(self) -> None:
        """Do nothing: attachments initialise themselves, and transformers' pass would overwrite frozen weights."""

    def train(self, mode: bool = True) -> ComposedModel:
        """Set the mode of the attachments; frozen models stay in eval mode, or their dropout would come alive."""
        super().train(mode)
        self.anchor.eval()
        self.graph.backends.eval()
        return self

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether blocks of frozen models are run again in the backward, which takes longer and needs less memory."""
        return self._recomputes

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only what goes into each frozen block, and what attachments need; calls with a cache keep everything.

        transformers' own would not work: it recomputes modules in training mode, and frozen models are never in it.

        Args:
            activation_checkpointing_kwargs: Not looked at.
            every_n_layers: Only 1.
            offload: Only False.

        Raises:
            ValueError: Another value.
        """
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"activation_checkpointing_enable: got every_n_layers={every_n_layers}, offload={offload}; "
                "a composition recomputes every block and offloads nothing, so leave both out"
            )
        self._recomputes = True

    def activation_checkpointing_disable(self) -> None:
        """Keep every activation for the backward, as at first."""
        self._recomputes = False

    def get_input_embeddings(self) -> nn.Module:
        """Return the anchor's."""
        embeddings: nn.Module = self.anchor.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return the anchor's."""
        head: nn.Module = self.anchor.get_output_embeddings()
        return head

    def new_cache(self) -> ComposedCache:
        """Make a cache for one batch: `model(..., past_key_values=model.new_cache())`."""
        config = self.config.get_text_config(decoder=True)
        return ComposedCache(config=config, request=self.graph.new_request(keeps=True))

    @contextmanager
    def augmenters(self, scales: Mapping[str, Scale] | None = None, /, **named: Scale) -> Iterator[None]:
        """Scale augmenters inside the `with`; nothing is left behind, and other threads see nothing of it.

        Args:
            scales: Augmenter name -> factor on what it contributes (0 switches it off), or one factor a row, float [B].
            named: The same by keyword, with underscores for the dots and dashes of a name.

        Yields:
            Nothing.
        """
        with self.graph.edges.scaled({**(scales or {}), **named}):
            yield

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: ComposedCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        prompt_lengths: torch.Tensor | None = None,
        prompt_texts: Sequence[str | None] | None = None,
        augmenter_inputs: AugmenterInputs | None = None,
        stored_states: Mapping[str, StoredStates] | None = None,
        told_ids: torch.Tensor | None = None,
        told_layer: int | None = None,
        kept: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the augmenters on what is new, then the anchor with their contexts.

        Args:
            input_ids: int64 [B, T], of the anchor's tokenizer.
            attention_mask: bool or int [B, past + T], 0 on padding (left or right); None: no padding.
            position_ids: int64 [B, T]; None counts the real tokens.
            past_key_values: A cache of `new_cache()`; holds everything of earlier calls.
            labels: int64 [B, T], -100 where unsupervised; shifted inside, as everywhere in transformers.
            use_cache: Return a cache to go on from.
            logits_to_keep: As in transformers; not looked at with labels.
            prompt_lengths: int64 [B], real tokens that are the sealed prompt; None: those before the first label, or
                none without labels. `generate` gives it.
            prompt_texts: Row by row, the text augmenters read as the prompt; None: the text of the prompt's tokens. An
                augmenter that shares the anchor's tokenizer, and has no template, reads the prompt's ids either way.
            augmenter_inputs: Augmenter name -> inputs of a model that reads something else than text.
            stored_states: Run name -> its states over these rows, so that no augmenter runs; with an entry for the
                anchor its blocks up to that layer do not run either. Not together with a cache.
            told_ids: int64 [B, T], the same texts with each prompt as it is told. The loss is then how far the states
                of all real tokens are from those that the anchor alone has over these; labels are not looked at, and
                nothing above `told_layer` runs. Not together with a cache.
            told_layer: The anchor's layer after which states are compared.
            kept: bool [B], with labels: rows whose loss is how far the distributions at supervised positions are from
                those of the anchor alone, in nats, and not their labels' cross-entropy. Not together with a cache.
            num_items_in_batch: Divide the summed loss by this instead of by the number of supervised tokens (with
                `told_ids`, of real ones).
            kwargs: Further arguments of the anchor's forward.

        Returns:
            loss (with labels), logits and past_key_values (with a cache). Logits are float [B, T, V]; with labels
            [K, V], of the K positions that predict a label, row by row: padding and prompts never reach the head.

        Raises:
            InputError: Empty or too long text, ids out of range, a prompt that is not whole, missing inputs. A cache
                that held tokens already cannot be gone on from after that.
        """
        cache = self.new_cache() if past_key_values is None and use_cache else past_key_values
        if cache is not None and not isinstance(cache, ComposedCache):
            raise InputError(
                f"past_key_values: got a {type(cache).__name__}, which has no room for augmenters; "
                "use model.new_cache(), or leave it to generate()"
            )
        if (told_ids is None) != (told_layer is None) or (told_ids is not None and cache is not None):
            raise InputError("told_ids: they need told_layer, and whole texts, so there can be no past_key_values")
        if cache is not None and kept is not None:
            raise InputError("kept: the anchor alone has no cache of its own, so there can be no past_key_values")
        if cache is not None and stored_states is not None:
            raise InputError("stored_states: they are those of whole texts, so there can be no past_key_values")
        if labels is not None and labels.shape != input_ids.shape:
            raise InputError(
                f"labels: got shape {tuple(labels.shape)}, expected {tuple(input_ids.shape)}, as input_ids"
            )
        tokens = self.anchor_tokens(input_ids, attention_mask, past=0 if cache is None else cache.get_seq_length())
        request = self.graph.new_request(keeps=False, stored=stored_states) if cache is None else cache.request
        if request.prompt_lengths_B is None:
            self.graph.begin(
                request,
                tokens,
                prompt_lengths=_prompt_lengths(tokens, labels) if prompt_lengths is None else prompt_lengths,
                prompt_texts=prompt_texts,
                inputs=augmenter_inputs or {},
            )
        with recomputing(self._recomputes and cache is None):
            writes = self.graph.push(request, tokens)

        positions = None if labels is None or told_ids is not None else supervised_positions(labels)
        arguments = {
            **kwargs,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": tokens.index_BT if position_ids is None and attention_mask is not None else position_ids,
            "past_key_values": cache,
            "use_cache": cache is not None,
            "logits_to_keep": 0 if positions else logits_to_keep,
        }
        arguments = {key: value for key, value in arguments.items() if key in self._anchor_takes}
        start = self._start(stored_states, tokens.real_BT)
        if told_ids is not None and told_layer is not None:
            found_BTD = self._states_after(told_layer, arguments, writes=writes, start=start)
            with torch.no_grad():
                wanted_BTD = self._states_after(told_layer, {**arguments, "input_ids": told_ids})
            total = differences(found_BTD[tokens.real_BT], wanted_BTD[tokens.real_BT]).sum()
            count = tokens.real_BT.sum() if num_items_in_batch is None else num_items_in_batch
            return CausalLMOutputWithPast(loss=total / count)
        call = BlockCall(writes=writes, start=start, positions=positions)
        with recomputing(self._recomputes and cache is None), during(call):
            output = self.anchor(**arguments)
        if labels is None or positions is None:
            return CausalLMOutputWithPast(logits=output.logits, past_key_values=cache)
        (logits_KV,), (rows_K, columns_K) = output.logits, positions
        targets_K = labels[rows_K, columns_K + 1]
        if kept is None or not kept.any():
            total = next_token(logits_KV, targets_K)
        else:
            kept_K = kept[rows_K]
            alone_KV = self._logits_alone(arguments, labels, kept, start=start)
            total = next_token(logits_KV[~kept_K], targets_K[~kept_K]) + divergence(logits_KV[kept_K], alone_KV)
        loss = total / (len(targets_K) if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits_KV, past_key_values=cache)

    @torch.no_grad()
    def _logits_alone(
        self, arguments: Mapping[str, Any], labels: torch.Tensor, rows: torch.Tensor, *, start: Start | None
    ) -> torch.Tensor:
        """Run the anchor without augmenters on some rows, bool [B]; float [K, V], of their supervised positions."""
        some = {
            name: value[rows] if name in _BY_ROW and value is not None else value for name, value in arguments.items()
        }
        if start is not None:
            start = replace(start, states=start.states[rows])
        with during(BlockCall(start=start, positions=supervised_positions(labels[rows]))):
            (logits_KV,) = self.anchor(**some).logits
        return cast(torch.Tensor, logits_KV)

    def _states_after(
        self,
        layer: int,
        arguments: Mapping[str, Any],
        *,
        writes: Mapping[int, Write] | None = None,
        start: Start | None = None,
    ) -> torch.Tensor:
        """Run the anchor's first blocks; float [B, T, D]."""
        call = BlockCall(taps=frozenset({layer}), writes=writes or {}, start=start)
        with recomputing(self._recomputes), up_to(layer, call):
            self.anchor(**arguments)
        return call.states[layer]

    def anchor_tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, *, past: int = 0
    ) -> AnchorTokens:
        """Check new tokens of this model's anchor and count the real ones: see `check_tokens`."""
        return check_tokens(
            input_ids,
            attention_mask,
            past=past,
            vocab_size=self.config.get_text_config(decoder=True).vocab_size,
            anchor=self.plan.anchor,
        )

    def _start(self, stored: Mapping[str, StoredStates] | None, real_BT: torch.Tensor) -> Start | None:
        name = self.plan.anchor.name
        if stored is None or name not in stored:
            return None
        layer, first = stored[name].layers[-1], self.plan.first_attached_layer
        if layer > first:
            raise InputError(f"stored_states[{name!r}]: got layer {layer}, but the first that is attached is {first}")
        layout = LAYOUTS.get(self.anchor.config.model_type)
        if layout is None:
            raise InputError(f"stored_states[{name!r}]: how the blocks of {name!r} return their output is not known")
        states_BTD = stored[name].padded(real_BT, layers=[layer], name=name)[layer].to(self.anchor.dtype)
        return Start(layer=layer, states=states_BTD, in_tuple=layout.tuple_blocks)

    def __repr__(self) -> str:
        from calm_graph.plan.draw import table

        return f"{type(self).__name__}\n{table(self.plan)}"


def _prompt_lengths(tokens: AnchorTokens, labels: torch.Tensor | None) -> torch.Tensor:
    if labels is None:
        return torch.zeros(len(tokens.ids_BT), dtype=torch.int64, device=tokens.ids_BT.device)
    before_first_label_BT = (labels != -100).long().cumsum(dim=1) == 0
    return (before_first_label_BT & tokens.real_BT).sum(dim=1)
