"""Write train.jsonl and dev.jsonl: short rows of each language and of plain English, from the suites' files."""

from __future__ import annotations

from calm_graph.evaluate.suites.translation import tasks
from calm_graph.evaluate.tasks.task import Task
from examples.rows import main

LANGUAGES = ("ace", "ban", "bho", "jav", "lij", "mar", "min", "sun")

# What the anchor could before it should still be able to do: to go on with English that is no translation, to answer.
ENGLISH = {
    "text": Task(
        name="text",
        data="translation/tico19/ckb-en.test.jsonl",
        train=("translation/tico19/ckb-en.train.jsonl",),
        dev=("translation/tico19/ckb-en.dev.jsonl",),
        prompt="English:",
        reference=" {en}",
        metrics=("bits_per_byte",),
    ),
    "questions": Task(
        name="questions",
        data="math/gsm8k.test.jsonl",
        train=("math/gsm8k.train.jsonl",),
        prompt="Question:",
        reference=" {question}",
        metrics=("bits_per_byte",),
    ),
    "answers": Task(
        name="answers",
        data="math/gsm8k.test.jsonl",
        train=("math/gsm8k.train.jsonl",),
        prompt="Question: {question}\nAnswer:",
        reference=" {answer}",
        metrics=("bits_per_byte",),
    ),
    "programs": Task(
        name="programs",
        data="code/mbpp.test.jsonl",
        train=("code/mbpp.train.jsonl",),
        dev=("code/mbpp.dev.jsonl",),
        prompt="Task: {text}\nProgram:\n",
        reference="{code}",
        metrics=("bits_per_byte",),
    ),
}

if __name__ == "__main__":
    # Any task of a language names all its rows to train and to choose on.
    of_language = {task.language: task for task in tasks() if task.train}
    main(
        {language: of_language[language] for language in LANGUAGES} | ENGLISH,
        example="low_resource",
        doc=__doc__,
        max_tokens=160,
        num_train=1300,
        num_dev=24,
    )
