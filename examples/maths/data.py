"""Write train.jsonl and dev.jsonl: English word problems with their worked answers, from the maths suite's files."""

from __future__ import annotations

from calm_graph.evaluate.suites.maths import tasks
from examples.maths.composition import composition
from examples.rows import main

if __name__ == "__main__":
    gsm8k = next(task for task in tasks() if task.name == "gsm8k")
    main(
        # GSM8K has no rows to choose on; some of those to train on are kept for that.
        {"gsm8k": gsm8k.model_copy(update={"dev": gsm8k.train})},
        example="maths",
        doc=__doc__,
        max_tokens=160,
        num_train=4000,
        num_dev=64,
        anchor=composition.anchor,
    )
