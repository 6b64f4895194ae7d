"""What an augmenter's understanding is worth: let it translate each problem, and the anchor solve the translation.

A composition of the two is hardly likely to be far above that: it knows of a question what its augmenter understands.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence

import torch

from calm_graph.evaluate.measures.metrics import normalised
from calm_graph.evaluate.suites.maths import tasks
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.systems.plain import PlainSystem
from calm_graph.evaluate.tasks.task import Item, data_folder
from examples.maths.composition import composition
from registry import registry

LANGUAGES = {"bn": "Bengali", "de": "German", "sw": "Swahili", "te": "Telugu", "th": "Thai", "zh": "Chinese"}
NUM_SHOTS = 4


def examples(language: str) -> str:
    """Return problems of MGSM's examples in a language, each with its English."""
    lines = (data_folder() / "math/mgsm-exemplars.jsonl").read_text("utf-8").splitlines()
    # Each begins with the word for "Question" in its language.
    questions = {
        (row["lang"], row["n"]): re.split("[:：]", row["question"], maxsplit=1)[1].strip()
        for row in map(json.loads, lines)
    }
    return "".join(
        f"{LANGUAGES[language]}: {questions[language, n]}\nEnglish: {questions['en', n]}\n\n"
        for n in range(1, NUM_SHOTS + 1)
    )


def translated(system: PlainSystem, language: str, items: Sequence[Item]) -> list[str]:
    """Return the English of each problem, as a model puts it."""
    before = examples(language)
    prompts = [f"{before}{LANGUAGES[language]}: {item.row['question']}\nEnglish:" for item in items]
    answers = system.generate(prompts, Decoding(max_new_tokens=160, stop=("\n",)), done=lambda _: None)
    return [texts[0].strip() for texts in answers]


def main() -> None:
    """Print how many problems of each language are solved that way, and the first translation."""
    parser = argparse.ArgumentParser(prog="python -m examples.maths.translate_first", description=__doc__)
    parser.add_argument("--languages", default="bn,sw,te,de", help=f"of {', '.join(LANGUAGES)}")
    parser.add_argument("--limit", type=int, default=24, help="problems of each; default: 24")
    args = parser.parse_args()
    mgsm = {task.language: task.model_copy(update={"limit": args.limit}) for task in tasks() if task.name == "mgsm"}
    augmenter, anchor = (
        PlainSystem.of_card(registry.get(name), name=name, dtype=torch.bfloat16)
        for name in (str(composition.augmenters[0].name), composition.anchor)
    )
    english = mgsm["en"].items(few_shot=True)[0].prompt
    before = english[: english.rindex("Question: ")]
    for language in args.languages.split(","):
        items = mgsm[language].items()
        texts = translated(augmenter, language, items)
        prompts = [f"{before}Question: {text}\nStep-by-Step Answer:" for text in texts]
        answers = anchor.generate(prompts, mgsm["en"].decoding(), done=lambda _: None)
        right = sum(normalised(found[0], "number") == item.target for found, item in zip(answers, items, strict=True))
        print(f"{language}: {right} of {len(items)} right; the first was translated as {texts[0]!r}", flush=True)


if __name__ == "__main__":
    main()
