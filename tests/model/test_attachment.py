"""One attachment against a plain implementation of the formula in the paper's section 3.1."""

from __future__ import annotations

import math

import pytest
import torch

from calm_graph.model.attachment import MAX_SLOPE, ROTARY_BASE, Attachment

C, D, N, H = 12, 16, 4, 4
B, T, S = 2, 5, 7


def make(**options: str) -> Attachment:
    torch.manual_seed(0)
    attachment = Attachment(source_width=C, target_width=D, num_heads=N, head_dim=H, **options)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attachment


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    source_BSC = torch.randn(B, S, C, generator=generator) * 3
    target_BTD = torch.randn(B, T, D, generator=generator) * 2
    visible_BTS = torch.rand(B, T, S, generator=generator) < 0.5
    visible_BTS[0, 1] = False
    visible_BTS[1, :2] = False
    source_index_BS = torch.randint(0, 40, (B, S), generator=generator)
    target_index_BT = torch.randint(0, 40, (B, T), generator=generator)
    return source_BSC, target_BTD, visible_BTS, source_index_BS, target_index_BT


def run(attachment: Attachment, source: torch.Tensor, target: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    visible, source_index, target_index = more
    keys, values = attachment.context(source, source_index)
    return attachment(
        target, keys=keys, values=values, visible_BTS=visible, index_BT=target_index, source_index_BS=source_index
    )


def plain(attachment: Attachment, source: torch.Tensor, target: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """The same formula, one number at a time, in double precision."""
    visible, source_index, target_index = more
    weights = {name: parameter.detach().double() for name, parameter in attachment.named_parameters()}

    def norm(vector: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights.get(f"{name}_norm.weight")
        return vector if weight is None else vector / torch.sqrt((vector**2).mean() + 1e-6) * weight

    def turned(vector: torch.Tensor, place: int) -> torch.Tensor:
        if attachment.positions != "rotary":
            return vector
        out = vector.clone()
        for pair in range(H // 2):
            angle = place * ROTARY_BASE ** (-pair / (H // 2))
            left, right = vector[pair], vector[pair + H // 2]
            out[pair] = left * math.cos(angle) - right * math.sin(angle)
            out[pair + H // 2] = right * math.cos(angle) + left * math.sin(angle)
        return out

    out = torch.zeros(B, T, D, dtype=torch.float64)
    for row in range(B):
        context = [weights["project.weight"] @ norm(states, "source") for states in source[row].double()]
        for place in range(T):
            seen = visible[row, place].nonzero().flatten().tolist()
            if not seen:
                continue
            normed = norm(target[row, place].double(), "target")
            heads = []
            for head in range(N):
                part = slice(head * H, (head + 1) * H)
                query = turned(weights["query.weight"][part] @ normed, int(target_index[row, place]))
                scores = []
                for other in seen:
                    key = turned(weights["key.weight"][part] @ context[other], int(source_index[row, other]))
                    score = float(query @ key) / math.sqrt(H)
                    if attachment.positions == "distance":
                        slope = MAX_SLOPE * 16 ** (-head / N)
                        score -= slope * abs(int(target_index[row, place]) - int(source_index[row, other]))
                    scores.append(score)
                exponentials = [math.exp(score - max(scores)) for score in scores]
                mixed = torch.zeros(H, dtype=torch.float64)
                for weight, other in zip(exponentials, seen, strict=True):
                    mixed += weight / sum(exponentials) * (weights["value.weight"][part] @ context[other])
                heads.append(mixed)
            added = weights["output.weight"] @ torch.cat(heads)
            added = added * torch.tanh(weights["gate"]) if "gate" in weights else added
            size = target[row, place].double().square().mean().sqrt() if attachment.writes == "relative" else 1.0
            out[row, place] = size * added
    return out


@pytest.mark.parametrize("writes", ["absolute", "relative"])
@pytest.mark.parametrize("gate", ["none", "tanh"])
@pytest.mark.parametrize("positions", ["none", "rotary", "distance"])
def test_it_computes_the_formula(gate: str, positions: str, writes: str) -> None:
    attachment = make(gate=gate, positions=positions, writes=writes)
    got = run(attachment, *inputs())
    torch.testing.assert_close(got.double(), plain(attachment, *inputs()), atol=1e-5, rtol=0)
    assert got.abs().max() > 0.1


def test_without_norms_states_are_read_as_they_are() -> None:
    attachment = make(norms="none")
    assert not [name for name, _ in attachment.named_parameters() if "norm" in name]
    torch.testing.assert_close(run(attachment, *inputs()).double(), plain(attachment, *inputs()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ["rotary", "distance"])
def test_positions_depend_on_distance_only(positions: str) -> None:
    attachment = make(positions=positions)
    source, target, visible, source_index, target_index = inputs()
    here = run(attachment, source, target, visible, source_index, target_index)
    there = run(attachment, source, target, visible, source_index + 9, target_index + 9)
    elsewhere = run(attachment, source, target, visible, source_index, target_index + 9)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    assert not torch.allclose(here, elsewhere, atol=1e-2)


def test_rotary_leaves_the_odd_end_of_a_head_alone() -> None:
    attachment = Attachment(source_width=6, target_width=6, num_heads=2, head_dim=3, positions="rotary")
    source = torch.randn(1, 4, 6)
    near, _ = attachment.context(source, torch.zeros(1, 4, dtype=torch.int64))
    far, _ = attachment.context(source, torch.full((1, 4), 5))
    assert torch.equal(near[..., 2], far[..., 2])
    assert not torch.allclose(near[..., :2], far[..., :2])


@pytest.mark.parametrize("positions", ["none", "rotary", "distance"])
def test_where_nothing_is_visible_it_adds_exactly_zero_and_gradients_stay_finite(positions: str) -> None:
    attachment = make(gate="tanh", positions=positions)
    source, target, visible, *places = inputs()
    source.requires_grad_()
    target.requires_grad_()
    out = run(attachment, source, target, visible, *places)
    blind = ~visible.any(dim=-1)
    assert blind.any() and torch.equal(out[blind], torch.zeros_like(out[blind]))
    assert (out[~blind] != 0).all()
    out.square().sum().backward()
    for parameter in (*attachment.parameters(), source, target):
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert torch.equal(target.grad[blind], torch.zeros_like(target.grad[blind]))


def test_a_spared_first_token_gets_exactly_zero_and_the_others_what_they_got() -> None:
    source, target, _, source_index, target_index = inputs()
    target_index = torch.arange(T).expand(B, T).clone()
    target_index[1] += 3  # a later part of a text has no first token
    visible = torch.ones(B, T, S, dtype=torch.bool)
    writing, sparing = (
        run(make(first_token=first), source, target, visible, source_index, target_index)
        for first in ("write", "spare")
    )
    first = target_index == 0
    assert torch.equal(sparing[first], torch.zeros(1, D)) and (writing[first] != 0).all()
    assert torch.equal(sparing[~first], writing[~first])


def test_relative_writes_grow_with_the_stream_and_an_empty_stream_has_gradients() -> None:
    attachment = make(writes="relative")
    source, target, *more = inputs()
    small, large = (run(attachment, source, times * target, *more) for times in (1, 100))
    torch.testing.assert_close(large, 100 * small, rtol=1e-4, atol=1e-3)
    target[0, 0] = 0
    target.requires_grad_()
    run(attachment, source, target, *more).square().sum().backward()
    assert target.grad is not None and target.grad.isfinite().all()


def test_all_blind_or_nothing_to_see_is_zero() -> None:
    attachment = make()
    source, target, visible, source_index, target_index = inputs()
    out = run(attachment, source, target, torch.zeros_like(visible), source_index, target_index)
    assert torch.equal(out, torch.zeros_like(out))


def test_states_that_are_not_visible_do_not_matter_even_if_they_are_huge() -> None:
    attachment = make()
    source, target, visible, *places = inputs()
    visible[:, :, 3] = False
    before = run(attachment, source, target, visible, *places)
    source[:, 3] = 1e4
    assert torch.equal(before, run(attachment, source, target, visible, *places))


@pytest.mark.parametrize("gate", ["none", "tanh"])
def test_a_fresh_attachment_adds_exactly_zero_and_still_learns(gate: str) -> None:
    attachment = Attachment(source_width=C, target_width=D, num_heads=N, head_dim=H, gate=gate)
    source, target, visible, *places = inputs()
    out = run(attachment, source, target, visible, *places)
    assert torch.equal(out, torch.zeros_like(out))
    (out * torch.randn_like(out)).sum().backward()
    opened = attachment.gate if gate == "tanh" else attachment.output.weight
    assert opened.grad is not None and opened.grad.abs().sum() > 0


@pytest.mark.parametrize("gate", ["none", "tanh"])
def test_it_has_the_papers_number_of_parameters(gate: str) -> None:
    attachment = Attachment(source_width=C, target_width=D, num_heads=N, head_dim=H, gate=gate)
    count = sum(parameter.numel() for parameter in attachment.parameters())
    assert count == C * D + 4 * D * D + (C + D) + (gate == "tanh")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_answers_in_the_dtype_of_the_stream(dtype: torch.dtype) -> None:
    attachment = make()
    source, target, *more = inputs()
    exact = run(attachment, source, target, *more)
    rough = run(attachment, source.to(dtype), target.to(dtype), *more)
    assert rough.dtype == dtype
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.05)
