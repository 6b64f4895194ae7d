"""Write train.jsonl and dev.jsonl: short rows of each language and of plain English, from the suites' files."""

from __future__ import annotations

from calm_graph.evaluate.suites.translation import tasks
from calm_graph.evaluate.tasks.task import Task
from examples.rows import main

LANGUAGES = ("ace", "ban", "bho", "jav", "lij", "mar", "min", "sun")


def _english(file: str, prompt: str, reference: str, *, dev: bool = False) -> Task:
    return Task(
        name="english",
        data=f"{file}.test.jsonl",
        train=(f"{file}.train.jsonl",),
        dev=(f"{file}.dev.jsonl",) if dev else (),
        prompt=prompt,
        reference=reference,
        metrics=("bits_per_byte",),
    )


# What the anchor could before it should still be able to do: to go on with English that is no translation, to answer.
ENGLISH = {
    "text": _english("translation/tico19/ckb-en", "English:", " {en}", dev=True),
    "questions": _english("math/gsm8k", "Question:", " {question}"),
    "answers": _english("math/gsm8k", "Question: {question}\nAnswer:", " {answer}"),
    "programs": _english("code/mbpp", "Task: {text}\nProgram:\n", "{code}", dev=True),
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
