"""What the anchor could before it was composed or tuned: English text, and answers to instructions."""

from __future__ import annotations

from calm_graph.evaluate.tasks.task import Task


def tasks() -> list[Task]:
    """Return English text without a prompt, and answers of an assistant; both are only scored."""
    return [
        Task(
            suite="forgetting",
            name="english",
            # English of FLORES' dev rows, which nothing is trained on.
            data="translation/flores200/nno-en.dev.jsonl",
            prompt="",
            reference="{en}",
            metrics=("perplexity", "bits_per_byte"),
        ),
        Task(
            suite="forgetting",
            name="instructions",
            data="instruct/self_instruct_seed.jsonl",
            prompt="Instruction: {messages[0][content]}\nAnswer:",
            reference=" {messages[1][content]}",
            metrics=("perplexity", "bits_per_byte"),
        ),
    ]
