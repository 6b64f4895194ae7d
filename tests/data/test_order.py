"""The order of batches: a function of seed and step, for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calm_graph.data.order import BatchOrder, share, split


@pytest.mark.parametrize("num_samples", [1, 7, 64, 1001])
def test_an_epoch_shows_every_sample_once_and_any_step_can_be_asked_for(num_samples: int) -> None:
    lengths = [5 + (index * 7919) % 50 for index in range(num_samples)]
    order = BatchOrder(lengths, batch_size=8, seed=3)
    steps = -(-num_samples // 8)
    epochs = [[order.batch(step) for step in range(e * steps, (e + 1) * steps)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(index for batch in epoch for index in batch) == list(range(num_samples))
        assert all(len(batch) <= 8 for batch in epoch)
    assert num_samples < 9 or epochs[0] != epochs[1]
    late = BatchOrder(lengths, batch_size=8, seed=3)
    assert late.batch(2 * steps - 1) == epochs[1][-1]
    assert num_samples < 9 or BatchOrder(lengths, batch_size=8, seed=4).batch(0) != epochs[0][0]


def test_batches_hold_samples_of_similar_length() -> None:
    lengths = [1 + (index * 7919) % 100 for index in range(800)]
    order = BatchOrder(lengths, batch_size=8, seed=0)
    padded = sum(8 * max(lengths[i] for i in order.batch(step)) for step in range(100))
    assert 1 - sum(lengths) / padded < 0.05


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)
BUDGETS = st.one_of(st.none(), st.integers(2, 200))


def epochs(order: BatchOrder, count: int) -> list[list[list[int]]]:
    """The batches of the first epochs, found by asking for one step after the other."""
    found: list[list[list[int]]] = [[] for _ in range(count)]
    step = 0
    while (epoch := int(order.epoch(step))) < count:
        found[epoch].append(order.batch(step))
        step += 1
    return found


@given(LENGTHS, BUDGETS, st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_each_epoch_has_every_sample_once_within_the_budget(
    lengths: list[int], budget: int | None, batch_size: int, pool_batches: int, seed: int
) -> None:
    order = BatchOrder(lengths, batch_size=batch_size, seed=seed, pool_batches=pool_batches, tokens_per_batch=budget)
    for batches in epochs(order, 3):
        assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
        for batch in batches:
            assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
            positions = len(batch) * max(lengths[i] for i in batch)
            assert len(batch) <= batch_size if budget is None else positions <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS, st.integers(1, 9), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_a_run_can_be_resumed_at_any_step(
    lengths: list[int], budget: int | None, batch_size: int, first: int, other: int
) -> None:
    """What was asked before makes no difference: neither earlier steps nor later ones."""

    def new() -> BatchOrder:
        return BatchOrder(lengths, batch_size=batch_size, seed=1, pool_batches=3, tokens_per_batch=budget)

    walked = new()
    steps = [(walked.epoch(step), walked.batch(step)) for step in range(first + 1)]
    assert (new().epoch(first), new().batch(first)) == steps[-1]
    jumping = new()
    jumping.batch(other)
    assert jumping.batch(first) == steps[-1][1]


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
@settings(deadline=None)
def test_shares_partition_a_batch_evenly(lengths: list[int], world: int) -> None:
    lengths = sorted(lengths)
    batch = list(range(len(lengths)))
    shares = [share(batch, rank, world) for rank in range(world)]
    assert sorted(index for each in shares for index in each) == batch
    sizes, tokens = [len(each) for each in shares], [sum(lengths[i] for i in each) for each in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


@given(LENGTHS, BUDGETS, st.integers(1, 6), st.integers(1, 6), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_the_number_of_workers_changes_no_step(
    lengths: list[int], budget: int | None, before: int, after: int, stop: int
) -> None:
    """A run of some workers that is resumed by others has the steps of one worker."""

    def step_of(world: int, step: int) -> list[int]:
        # Each worker has an order of its own, and asks only for the steps it takes part in.
        orders = [BatchOrder(lengths, batch_size=4, seed=0, tokens_per_batch=budget) for _ in range(world)]
        return sorted(i for rank, order in enumerate(orders) for i in share(order.batch(step), rank, world))

    for step in (stop - 1, stop, stop + 1):
        assert step_of(before if step < stop else after, step) == step_of(1, step)


def test_a_budget_pads_little_and_fills_its_batches() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 4000)
    order = BatchOrder(lengths, batch_size=8, seed=0, tokens_per_batch=4096)
    (batches,) = epochs(order, 1)
    positions = np.array([len(batch) * max(lengths[i] for i in batch) for batch in batches])
    assert 1 - lengths.sum() / positions.sum() < 0.05
    assert positions.mean() > 0.9 * 4096


def test_split_keeps_the_order() -> None:
    lengths = np.array([3, 9, 2, 2, 50, 1])
    order = np.arange(6)
    assert [each.tolist() for each in split(order, lengths, batch_size=4)] == [[0, 1, 2, 3], [4, 5]]
    budget = [each.tolist() for each in split(order, lengths, batch_size=4, tokens_per_batch=20)]
    assert budget == [[0, 1], [2, 3], [4], [5]]


@pytest.mark.parametrize("budget", [None, 10])
def test_the_given_order_is_kept_in_every_epoch(budget: int | None) -> None:
    """Within a batch the shortest comes first, as always."""
    order = BatchOrder([5, 1, 9, 2, 7], batch_size=2, seed=3, order="given", tokens_per_batch=budget)
    epoch = [[1, 0], [3, 2], [4]] if budget is None else [[1, 0], [2], [3], [4]]
    assert [order.batch(step) for step in range(2 * len(epoch))] == 2 * epoch
