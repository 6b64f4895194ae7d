"""Tasks that come with the package; their rows are read from the data folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from calm_graph.declare.base import near
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.tasks.task import Task

SUITES = {
    "kv": "substitution, arithmetic and key-value arithmetic (paper, Table 1)",
    "translation": "from low-resource and other languages into English (paper, Table 2)",
    "maths": "word problems in high- and low-resource languages (paper, Table 3)",
    "code": "programs from descriptions, and descriptions of programs (paper, Table 4)",
    "forgetting": "what the anchor could before: English text, and answers to instructions",
    "multi": "translation and code by one composition",
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
