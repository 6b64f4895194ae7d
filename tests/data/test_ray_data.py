"""Rows of Ray data sets, on a real local cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data
from transformers import PreTrainedTokenizerFast

from calm_graph.data import ray_data
from calm_graph.errors import InputError
from tests.data.conftest import CHAT, CHATML, load

pytestmark = pytest.mark.ray

ROWS = [{"prompt": f"price {i}", "completion": f" {i}" * (i % 3 + 1), "id": i} for i in range(300)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Workers import calm_graph from where the tests do.
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def test_rows_are_tokenised_where_they_are_and_keep_their_order(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(ROWS, tokenizer)
    monkeypatch.setattr(ray_data, "ROWS_AT_ONCE", 32)
    for blocks in (1, 7):
        loaded = load(ray.data.from_items(ROWS, override_num_blocks=blocks), tokenizer)
        assert loaded.fingerprint() == expected.fingerprint()
        assert [loaded.where(i) for i in range(300)] == [f"data[{i}]" for i in range(300)]


def test_messages_inputs_and_named_columns(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    rows = [{"chat": CHAT["messages"], "inputs": {"eye": {"pixels": [[float(i)] * 2] * 3}}} for i in range(4)]
    columns = {"messages": "chat", "augmenter_inputs": "inputs"}
    loaded = load(ray.data.from_items(rows), tokenizer, columns=columns)
    assert loaded.fingerprint() == load(rows, tokenizer, columns=columns).fingerprint()
    np.testing.assert_array_equal(loaded[3].augmenter_inputs["eye"]["pixels"], np.full((3, 2), 3.0))


def test_wrong_rows_and_columns_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a", "completion": None if i in (7, 250) else "b"} for i in range(300)]
    with pytest.raises(InputError, match=r"2 unusable rows\n  data\[7\] and 1 more: got the keys prompt, but no"):
        load(ray.data.from_items(rows, override_num_blocks=3), tokenizer)
    with pytest.raises(InputError, match="data: got the columns question, but a row is"):
        load(ray.data.from_items([{"question": "a"}]), tokenizer)


def test_workers_share_the_arrays_of_a_data_set(tokenizer: PreTrainedTokenizerFast) -> None:
    dataset = load(ROWS * 20, tokenizer)
    shared = ray.get(ray.put(dataset))
    # Memory of the object store is read-only: these are no copies.
    assert not shared.input_ids.flags.writeable and not shared.texts.flags.writeable
    assert shared.fingerprint() == dataset.fingerprint()
    assert (shared.batch([3, 5])["labels"] == dataset.batch([3, 5])["labels"]).all()


def test_a_cluster_without_a_free_cpu_is_an_error_not_a_wait_for_ever(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "CPU_WAIT_S", 1.0)
    group = ray.util.placement_group([{"CPU": 2}])
    ray.get(group.ready())
    try:
        with pytest.raises(InputError, match="no free CPU to tokenise with: all of its 2 are reserved; release some"):
            load(ray.data.from_items(ROWS), tokenizer)
    finally:
        ray.util.remove_placement_group(group)
    monkeypatch.setattr(ray_data, "CPU_WAIT_S", 30.0)
    assert len(load(ray.data.from_items(ROWS), tokenizer)) == 300
