"""Write train.jsonl and dev.jsonl: programs of descriptions and the other way round, from the code suite's files."""

from __future__ import annotations

from calm_graph.evaluate.suites.code import tasks
from examples.rows import main

if __name__ == "__main__":
    main(
        {task.label: task for task in tasks() if task.train or task.dev},
        example="code",
        doc=__doc__,
        max_tokens=224,
        num_train=800,
        num_dev=48,
    )
