"""Write train.jsonl and dev.jsonl: short rows of each language, from the files of the translation suite."""

from __future__ import annotations

from calm_graph.evaluate.suites.translation import tasks
from examples.rows import main

LANGUAGES = ("ace", "ban", "bho", "jav", "lij", "mar", "min", "sun")

if __name__ == "__main__":
    # Any task of a language names all its rows to train and to choose on.
    of_language = {task.language: task for task in tasks() if task.train}
    main(
        {language: of_language[language] for language in LANGUAGES},
        example="low_resource",
        doc=__doc__,
        max_tokens=160,
        num_train=1000,
        num_dev=24,
    )
