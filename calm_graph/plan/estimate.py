"""What a plan costs: parameters, FLOPs and bytes, worked out from the cards alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from calm_graph.plan.parts import Edge, Plan, PlannedAttachment, PlannedRun
from registry import ModelCard

BYTES_FP32 = 4
BYTES_BF16 = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Parameters of a frozen model by place.

    Args:
        block: Of one block.
        active_block: Those of a block that a token goes through: fewer in a mixture of experts.
        embedding: Of the input embedding (and of the output embedding where it is not tied).
        head: Of the multiplication that makes logits: vocabulary times width.
        is_gated: Whether the MLP of a block has a gate: three matrices, not two.
        is_exact: Whether the card gives the total; else all three follow from the shape alone.
    """

    block: int
    active_block: int
    embedding: int
    head: int
    is_gated: bool
    is_exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one run of a frozen model, or all attachments from one run to another, cost.

    Args:
        num_parameters: Of a run: of the blocks that run and the embedding.
        flops_per_prompt_token: For each token of the prompt.
        flops_per_generated_token: For each new token; 0 when the prompt is read only once.
        cache_values_per_token: Numbers kept per token for the next steps: keys and values.
    """

    num_parameters: int
    flops_per_prompt_token: int
    flops_per_generated_token: int
    cache_values_per_token: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a plan.

    Args:
        num_context_tokens: How many tokens have been read already, for the cost of attending to them.
        anchor_parameters: Of the whole anchor.
        runs: Run name -> cost, in the order of the plan.
        edges: (source, target) -> cost.
        num_trainable_parameters: Of the attachments that training changes.
        num_frozen_parameters: Of every frozen model that is loaded: each once, as deep as its deepest run.
    """

    num_context_tokens: int
    anchor_parameters: int
    runs: Mapping[str, Cost]
    edges: Mapping[tuple[str, str], Cost]
    num_trainable_parameters: int
    num_frozen_parameters: int

    @cached_property
    def num_attachment_parameters(self) -> int:
        """Parameters of all attachments, those of checkpoints among them."""
        return sum(cost.num_parameters for cost in self.edges.values())

    @property
    def share_of_anchor(self) -> float:
        """Parameters of all attachments over those of the anchor."""
        return self.num_attachment_parameters / self.anchor_parameters

    @property
    def flops_per_prompt_token(self) -> int:
        """FLOPs of the whole model for a token of the prompt."""
        return sum(cost.flops_per_prompt_token for cost in (*self.runs.values(), *self.edges.values()))

    @property
    def flops_per_generated_token(self) -> int:
        """FLOPs of the whole model for a new token."""
        return sum(cost.flops_per_generated_token for cost in (*self.runs.values(), *self.edges.values()))

    @property
    def cache_values_per_token(self) -> int:
        """Numbers that a request keeps per token: keys and values of the runs and of the attachments' contexts."""
        return sum(cost.cache_values_per_token for cost in (*self.runs.values(), *self.edges.values()))


def estimate(plan: Plan, *, num_context_tokens: int = 1024) -> Estimate:
    """Work out what a plan costs.

    One multiply-add is 2 FLOPs. A matrix of n parameters costs 2n a token; attention over S tokens 4 S N H: scores and
    weighted sum (Hoffmann et al. 2022, appendix F). Norms, softmax and embedding look-ups are left out, as there.
    An augmenter is taken to have as many tokens as the anchor.

    Args:
        plan: What runs.
        num_context_tokens: How many tokens have been read already, for the cost of attending to them.

    Returns:
        The cost of each run and edge, and totals.
    """
    runs = {run.name: _run_cost(run, num_context_tokens) for run in plan.runs}
    edges = {
        (edge.source, edge.target): _edge_cost(
            edge, plan.run(edge.source), plan.run(edge.target), num_context_tokens=num_context_tokens
        )
        for edge in plan.edges
    }
    deepest: dict[tuple[str, bool], int] = {}
    for run in plan.runs:
        if run.runtime == "remote":  # is loaded elsewhere
            continue
        loaded = (run.card.name, run.is_anchor)
        deepest[loaded] = max(runs[run.name].num_parameters, deepest.get(loaded, 0))
    return Estimate(
        num_context_tokens=num_context_tokens,
        anchor_parameters=runs[plan.anchor.name].num_parameters,
        runs=runs,
        edges=edges,
        num_trainable_parameters=sum(count_parameters(found) for found in plan.attachments if found.trainable),
        num_frozen_parameters=sum(deepest.values()),
    )


def count_parameters(attachment: PlannedAttachment) -> int:
    """Return an attachment's parameters: C D + 4 D^2 for the matrices, C + D for the norms, 1 for a gate.

    The paper's C.1 counts C D + 3 D^2: it leaves out W_o, which its section 3.1 has.
    """
    c, d = attachment.source_width, attachment.target_width
    norms = (c + d) * (attachment.norms == "rms")
    return c * d + 4 * d * attachment.num_heads * attachment.head_dim + norms + (attachment.gate == "tanh")


def model_size(card: ModelCard) -> ModelSize:
    """Return the parameters of a model by place.

    A transformer block has four attention matrices, and two or three in the MLP (three with a gate); the embedding is
    tied to the head or not. Cards do not say which, so the choice that comes nearest to the published total is taken,
    and the blocks get what the embeddings leave of that total.
    """
    assert card.num_layers is not None and card.hidden_size is not None  # a plan has only such cards
    num_layers, width, num_heads = card.num_layers, card.hidden_size, card.num_heads or 1
    head_dim = card.head_dim or width // num_heads
    attention = 2 * width * head_dim * (num_heads + (card.num_key_value_heads or num_heads))
    head = width * (card.vocab_size or 0)
    gated = attention + 3 * width * (card.intermediate_size or 4 * width)
    plain = attention + 2 * width * (card.intermediate_size or 4 * width)
    total = card.num_parameters
    if total is None:
        return ModelSize(block=gated, active_block=gated, embedding=head, head=head, is_gated=True, is_exact=False)
    guesses = [(block, embedding) for block in (gated, plain) for embedding in (head, 2 * head)]
    nearest, embedding = min(guesses, key=lambda guess: abs(guess[0] * num_layers + guess[1] - total))
    embedding = min(embedding, total)
    idle = total - (card.num_active_parameters or total)
    return ModelSize(
        block=(total - embedding) // num_layers,
        active_block=max(0, total - embedding - idle) // num_layers,
        embedding=embedding,
        head=head,
        is_gated=nearest == gated,
        is_exact=True,
    )


def _run_cost(run: PlannedRun, num_context_tokens: int) -> Cost:
    card, size = run.card, model_size(run.card)
    num_heads = card.num_heads or 1
    head_dim = card.head_dim or run.hidden_size // num_heads
    attention = 4 * num_context_tokens * num_heads * head_dim
    flops = run.num_blocks * (2 * size.active_block + attention)
    follows = run.reading == "stream"
    embedding = size.embedding if run.is_anchor else min(size.embedding, size.head)  # no output embedding is loaded
    num_parameters = run.num_blocks * size.block + embedding
    return Cost(
        num_parameters=card.num_parameters or num_parameters if run.is_anchor else num_parameters,
        flops_per_prompt_token=flops,
        flops_per_generated_token=(flops + 2 * size.head * run.is_anchor) * follows,
        cache_values_per_token=2 * (card.num_key_value_heads or num_heads) * head_dim * run.num_blocks * follows,
    )


def _edge_cost(edge: Edge, source: PlannedRun, target: PlannedRun, *, num_context_tokens: int) -> Cost:
    context = attending = cache = 0
    for found in edge.attachments:
        d, inner = found.target_width, found.num_heads * found.head_dim
        context += 2 * (found.source_width * d + 2 * d * inner)  # projection, keys and values of one new source token
        attending += 2 * 2 * d * inner + 4 * num_context_tokens * inner  # query and output; scores and weighted sum
        cache += 2 * inner
    return Cost(
        num_parameters=sum(map(count_parameters, edge.attachments)),
        flops_per_prompt_token=context + attending,
        flops_per_generated_token=context * (source.reading == "stream") + attending * (target.reading == "stream"),
        cache_values_per_token=cache * (target.reading == "stream"),
    )


def flops_per_prompt_token(plan: Plan) -> dict[str, int]:
    """Return augmenter -> operations for each token of a prompt, with those of its attachments."""
    cost = estimate(plan)
    flops = {run.name: cost.runs[run.name].flops_per_prompt_token for run in plan.runs if not run.is_anchor}
    for (source, _), edge in cost.edges.items():
        flops[source] += edge.flops_per_prompt_token
    return flops
