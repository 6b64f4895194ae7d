"""Rows of a Ray data set, tokenised where they are; what comes to this process is tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from calm_graph.data.columns import Columns, as_row, columns_to_read
from calm_graph.data.part import ROWS_AT_ONCE, Part, make_part
from calm_graph.data.rows import Place, Source
from calm_graph.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset
    from transformers import PreTrainedTokenizerBase

CPU_WAIT_S = 30.0
"""How long a busy cluster may take to free a CPU."""


def parts_of(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, columns: Columns | None, *, told: bool
) -> Iterator[Part]:
    """Check and tokenise the rows of a data set in the tasks of its cluster.

    Args:
        dataset: Of rows; it is run once.
        tokenizer: The anchor's.
        columns: Where the keys of a row are; None: each in the column of its name.
        told: As in `load_dataset`.

    Yields:
        The parts, in the order of the rows.

    Raises:
        InputError: Its columns make no row, or the cluster has no CPU that is free for the tasks.
    """
    _wait_for_cpu()
    found = dataset.columns()
    if found is not None:
        dataset = dataset.select_columns(columns_to_read(found, columns=columns, where="data"))
    tokenised = dataset.map_batches(
        _tokenise,
        batch_size=ROWS_AT_ONCE,
        batch_format="pyarrow",
        num_cpus=1,
        fn_kwargs={"tokenizer": tokenizer, "columns": columns, "told": told},
    )
    options = tokenised.context.execution_options
    was_preserved, num_rows = options.preserve_order, 0
    # Rows in another order would be another data set, and no run could be resumed with it.
    options.preserve_order = True
    try:
        for row in tokenised.iter_rows():
            part = row["part"]
            assert isinstance(part, Part)
            yield part.moved(num_rows)
            num_rows += part.num_rows
    finally:
        options.preserve_order = was_preserved


def _tokenise(
    table: pa.Table, *, tokenizer: PreTrainedTokenizerBase, columns: Columns | None, told: bool
) -> dict[str, Any]:
    source = Source("data", "rows")
    rows = [(Place(source, number), as_row(row, columns)) for number, row in enumerate(table.to_pylist())]
    return {"part": np.array([make_part(rows, tokenizer, told=told)], dtype=object)}


def _wait_for_cpu() -> None:
    """Ray Data waits for ever, without a word, when nothing is free to run its tasks."""
    if not ray.is_initialized():
        return
    deadline = time.monotonic() + CPU_WAIT_S
    while ray.available_resources().get("CPU", 0) < 1:
        if time.monotonic() > deadline:
            total = ray.cluster_resources().get("CPU", 0)
            raise InputError(
                f"data: the Ray cluster has no free CPU to tokenise with: all of its {total:g} are reserved; "
                "release some, or add nodes"
            )
        time.sleep(0.5)
