"""Tasks that come with the package; their rows are read from the data folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from calm_graph.declare.base import near
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.task import Task

SUITES = {
    "translation": "from low-resource and other languages into English (paper, Table 2)",
}
"""Name -> what it measures; the module of that name has `tasks()`."""


def suite_tasks(name: str) -> list[Task]:
    """Return the tasks of a suite.

    Args:
        name: One of `SUITES`.

    Returns:
        All its tasks, each language apart.

    Raises:
        EvaluationError: There is no such suite.
    """
    if name not in SUITES:
        raise EvaluationError(
            f"suite: got {name!r}, which is neither a file nor one of {', '.join(SUITES)}{near(name, SUITES)}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return cast(Callable[[], list[Task]], module.tasks)()
