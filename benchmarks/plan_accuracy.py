"""`calm-graph plan`: its parameters, FLOPs, peak memory and stored bytes are within 15% of measured training steps."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.bar import Bar
from benchmarks.tensor_memory import LiveBytes
from calm_graph.augmenters.taps import BlockCall, up_to
from calm_graph.augmenters.torch_backend import TorchBackend
from calm_graph.data.samples import IGNORED, Batch
from calm_graph.declare.composition import Augmenter, Composition, at, every
from calm_graph.declare.settings import Precision, TrainSettings
from calm_graph.model.build import build_model
from calm_graph.model.composed import ComposedModel
from calm_graph.model.stored import StoredStates
from calm_graph.plan.budget import stored_bytes_per_sample
from calm_graph.plan.step_flops import step_flops
from calm_graph.plan.step_memory import step_memory
from calm_graph.plan.workload import States, Workload
from calm_graph.train.step import make_optimizer, train_step
from registry import ModelCard, Registry
from registry import registry as built_in

BAR_PERCENT = 15.0
REAL = ("smollm2-135m-instruct", "gemma3-270m")
MODELS = Path(os.environ.get("CALM_GRAPH_MODELS", Path.home() / ".cache/calm-graph/models"))

# Small models of four architectures; wide enough for matrices to outweigh norms, as in models that are used.
_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2},
    "gemma3_text": {
        "hidden_size": 96,
        "intermediate_size": 320,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "sliding_window": 512,
    },
    "gpt2": {"n_embd": 128, "n_head": 4},
}
_VOCABULARY = 3000


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One training step that is predicted and measured.

    Args:
        composition: What is trained.
        registry: Where its models are.
        rows: Samples in the batch.
        tokens: Of each sample.
        prompt: How many of them are the prompt.
        precision: Of the arithmetic.
        told_layer: Where states are compared with told ones; None: answers are trained.
        states: What is read instead of being run.
        recomputes: Whether activations are checkpointed.
        num_kept: How many of the rows are kept.
    """

    composition: Composition
    registry: Registry
    rows: int = 4
    tokens: int = 192
    prompt: int = 64
    precision: Precision = "fp32"
    told_layer: int | None = None
    states: States = "none"
    recomputes: bool = False
    num_kept: int = 0


def measure() -> Bar:
    """Predict and measure training steps; the value is the worst relative error of any figure."""
    worst = 0.0
    print(f"{'composition':<22} {'figure':<12} {'planned':>16} {'measured':>16} {'error':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder)):
            for figure, (planned, measured) in compare(case).items():
                error = planned / measured - 1
                worst = max(worst, abs(error))
                print(f"{case.composition.name:<22} {figure:<12} {planned:>16,} {measured:>16,} {error:>+8.2%}")
    return Bar(
        name="plan_accuracy",
        value=round(100 * worst, 2),
        bar=BAR_PERCENT,
        holds=100 * worst <= BAR_PERCENT,
        unit="% error",
    )


def cases(folder: Path) -> Iterator[Case]:
    """Yield small compositions, and one of real models where these are on this machine.

    Args:
        folder: Where the small models are put.
    """
    pico = Registry(_small_model(folder, architecture) for architecture in _SHAPES)

    def composed(name: str, anchor: str, *augmenters: Augmenter) -> Composition:
        return Composition(name=name, anchor=anchor, augmenters=augmenters)

    llama = composed("llama-reads-qwen2", "llama", Augmenter("qwen2", attach=every(2)))
    yield Case(composition=llama, registry=pico)
    yield Case(composition=llama.model_copy(update={"name": "the-same-in-bf16"}), registry=pico, precision="bf16")
    yield Case(composition=llama.model_copy(update={"name": "half-of-it-kept"}), registry=pico, num_kept=2)
    stored = composed("states-are-read", "llama", Augmenter("qwen2", attach=at(anchor_layers=[3, 6])))
    yield Case(composition=stored, registry=pico, states="cached")
    yield Case(composition=llama.model_copy(update={"name": "run-again"}), registry=pico, recomputes=True)
    lower = composed("told-states", "llama", Augmenter("qwen2", attach=at(anchor_layers=[1, 3])))
    yield Case(composition=lower, registry=pico, told_layer=4)
    upper = Augmenter("llama", attach=at(anchor_layers=[4, 5]), reading="prompt", positions="distance", gate="tanh")
    yield Case(composition=composed("qwen2-upper-half", "qwen2", upper), registry=pico, tokens=256, prompt=128)
    both = (Augmenter("qwen2", reading="prompt"), Augmenter("gpt2", attach=every(3), positions="rotary", num_heads=2))
    yield Case(composition=composed("gemma3-reads-two", "gemma3_text", *both), registry=pico, rows=2)
    yield Case(
        composition=composed("gpt2-reads-gemma3", "gpt2", Augmenter("gemma3_text")), registry=pico, rows=8, prompt=0
    )
    inner = composed("inner", "gemma3_text", Augmenter("qwen2", attach=every(2)))
    yield Case(composition=composed("llama-reads-a-chain", "llama", Augmenter(inner, attach=every(2))), registry=pico)
    missing = [name for name in REAL if not (MODELS / name / "model.safetensors").exists()]
    if missing:
        print(f"left out: {' and '.join(REAL)}, because {MODELS} has no {' and no '.join(missing)}")
        return
    real = composed("smollm2-reads-gemma3", REAL[0], Augmenter(REAL[1], attach=every(4)))
    yield Case(composition=real, registry=built_in, rows=2, tokens=128, prompt=48)


def compare(case: Case) -> dict[str, tuple[int, int]]:
    """Return, by figure, what is planned and what is measured of one training step."""
    model = build_model(case.composition, registry=case.registry, dtype=torch.float32, seed=0)
    if case.precision == "bf16":
        model.anchor.to(torch.bfloat16)  # type: ignore[arg-type]
        model.graph.backends.to(torch.bfloat16)
    batch = _batch(model, case)
    read = _states_read(model, batch, case)
    if case.states != "none":
        read[model.plan.anchor.name] = _states_below(model, batch)
        batch["stored_states"] = {name: _stored(states) for name, states in read.items()}
        model = build_model(case.composition, registry=case.registry, dtype=torch.float32, load_augmenters=False)
    model.train()
    if case.recomputes:
        model.activation_checkpointing_enable()
    settings = TrainSettings(precision=case.precision, device="cpu")
    optimizer = make_optimizer(model, settings)

    def step() -> None:
        train_step(
            model,
            [batch],
            optimizer,
            learning_rate=1e-3,
            max_grad_norm=1.0,
            precision=case.precision,
            told_layer=case.told_layer,
        )

    with _flop_counter() as counter:
        step()
    gc.collect()
    with LiveBytes(_lasting(model, optimizer)) as live:
        step()
    workload = Workload(
        batch_size=case.rows,
        sequence_length=case.tokens,
        prompt_share=case.prompt / case.tokens,
        precision=case.precision,
        states=case.states,
        activation_checkpointing=case.recomputes,
        told_layer=case.told_layer,
        keep_share=case.num_kept / case.rows,
        token_ratios={
            name: next(iter(states.values())).shape[1] / _anchor_tokens(model, name, case)
            for name, states in read.items()
            if name != model.plan.anchor.name
        },
    )
    plan = model.plan
    flops, memory = step_flops(plan, workload), step_memory(plan, workload)
    kind = "augmenters" if case.states == "none" else case.states
    stored = stored_bytes_per_sample(plan, workload.model_copy(update={"states": kind}))
    measured = sum(each.numel() * each.element_size() for states in read.values() for each in states.values())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    loaded = sum(each.numel() * each.element_size() for each in model.parameters())
    return {
        "FLOPs": (case.rows * flops.total, counter.get_total_flops()),
        "peak bytes": (memory.peak, live.peak),
        "weights": (memory.frozen_weights + memory.gradients, loaded),
        "trained": (memory.gradients // 4, trained),
        **({"states": (case.rows * stored, measured)} if stored else {}),
    }


def _small_model(folder: Path, architecture: str) -> ModelCard:
    """Save a model and the demo's tokenizer, which is at hand; its vocabulary is larger than that."""
    sizes = {"vocab_size": _VOCABULARY, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    depth = {"n_layer": 8, "n_positions": 512} if architecture == "gpt2" else {"num_hidden_layers": 8}
    config = AutoConfig.for_model(architecture, **sizes, **_SHAPES[architecture], **depth)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / architecture)
    from registry.weights import load_tokenizer

    load_tokenizer(built_in.get("demo-arithmetic")).save_pretrained(folder / architecture)
    return ModelCard(name=architecture, source=f"folder:{folder / architecture}")


def _batch(model: ComposedModel, case: Case) -> Batch:
    """Make rows of one length, without padding. The ids are those of text, which other tokenizers can read."""
    text = " ".join(f"{number} and {number + 1}" for number in range(20))
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = ids.repeat(1 + case.rows * case.tokens // len(ids))[: case.rows * case.tokens].view(case.rows, case.tokens)
    labels = ids.clone()
    labels[:, : max(case.prompt, 1)] = IGNORED
    batch = Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=labels,
        prompt_lengths=torch.full((case.rows,), case.prompt),
        prompt_texts=[model.tokenizer.decode(row[: case.prompt]) for row in ids],
        augmenter_inputs={},
    )
    if case.told_layer is not None:
        batch["told_ids"] = ids.flip(0)
    if case.num_kept:
        batch["kept"] = torch.arange(case.rows) < case.num_kept
    return batch


def _states_read(model: ComposedModel, batch: Batch, case: Case) -> dict[str, dict[int, torch.Tensor]]:
    """Return, by run that nothing is trained into, what is read of it: layer -> float [B, S, C]."""
    calls: list[dict[int, torch.Tensor]] = []
    original = TorchBackend.read_tokens

    def watched(self: TorchBackend, *args: Any, **kwargs: Any) -> dict[int, torch.Tensor]:
        calls.append(original(self, *args, **kwargs))
        return calls[-1]

    TorchBackend.read_tokens = watched  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            model(**batch, told_layer=case.told_layer)
    finally:
        TorchBackend.read_tokens = original  # type: ignore[method-assign]
    runs = [run.name for run in model.graph.runs]
    read = dict(zip(runs, calls, strict=True))
    return {name: states for name, states in read.items() if not model.plan.into(name)}


@torch.no_grad()
def _states_below(model: ComposedModel, batch: Batch) -> dict[int, torch.Tensor]:
    """Return the anchor's states below its first attachment, likewise."""
    layer = model.plan.first_attached_layer
    call = BlockCall(taps=frozenset([layer]))
    with up_to(layer, call):
        model.anchor(input_ids=batch["input_ids"], use_cache=False)
    return {layer: call.states[layer]}


def _stored(states: dict[int, torch.Tensor]) -> StoredStates:
    stacked_BSLC = torch.stack([*states.values()], dim=2)
    num_rows, num_tokens = stacked_BSLC.shape[:2]
    return StoredStates(
        layers=tuple(states),
        lengths_B=torch.full((num_rows,), num_tokens),
        states_RLC=stacked_BSLC.flatten(0, 1),
    )


def _anchor_tokens(model: ComposedModel, name: str, case: Case) -> int:
    return case.prompt if model.plan.run(name).reading == "prompt" else case.tokens


def _flop_counter() -> FlopCounterMode:
    """Count the CPU's flash attention, too, which torch's own table leaves out."""

    def forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(
        grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
    ) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _lasting(model: ComposedModel, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
