"""Two jobs for one composition with a language and a code augmenter: a choice of the translation and code suites."""

from __future__ import annotations

from calm_graph.evaluate.suites import code, translation
from calm_graph.evaluate.tasks.task import Task

LANGUAGES = ("ban", "lij", "min", "sun")
CODE = ("mbpp", "code_to_text")


def tasks() -> list[Task]:
    """Return FLORES in a few languages, MBPP and descriptions of code."""
    chosen = [task for task in translation.tasks() if task.name == "flores200" and task.language in LANGUAGES]
    chosen += [task for task in code.tasks() if task.name in CODE]
    return [task.model_copy(update={"suite": "multi"}) for task in chosen]
