"""Word problems: MGSM in eleven languages (paper, Table 3) and GSM8K.

Questions are in each language; labels, examples and reasoning are English, as GSM8K's training rows are (the setting
that the MGSM paper calls EN-CoT with English exemplars).
"""

from __future__ import annotations

from typing import Any

from calm_graph.evaluate.tasks.task import Task

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
LOW_RESOURCE = ("bn", "sw", "te", "th")
"""As the paper divides them."""

_SHARED: dict[str, Any] = {
    "suite": "maths",
    "train": ("math/gsm8k.train.jsonl",),
    "prompt": "Question: {question}\nStep-by-Step Answer:",
    "reference": " {answer}",
    "target": "{final}",
    "answer": "number",
    "num_shots": 8,
    "shots_from": "math/mgsm-exemplars.jsonl",
    "shots_lang": "en",
    # The exemplars carry their labels themselves.
    "shot_prompt": "{question}\n",
    "shot_reference": "{answer}",
    "stop": ("\n\n", "\nQuestion:"),
    "max_new_tokens": 256,
    "metrics": ("accuracy", "bits_per_byte"),
}


def tasks() -> list[Task]:
    """Return GSM8K, and MGSM in each language: what is scored there is GSM8K's worked solution of the same problem."""
    mgsm = [
        Task(
            **_SHARED,
            name="mgsm",
            language=language,
            data=f"math/mgsm-{language}.test.jsonl",
            also_from="math/gsm8k.test.jsonl",
        )
        for language in LANGUAGES
    ]
    return [*mgsm, Task(**_SHARED, name="gsm8k", data="math/gsm8k.test.jsonl")]
