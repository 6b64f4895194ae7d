"""Translation into English: FLORES-200 (paper, Table 2), NusaX, TICO-19 and NLLB-Seed."""

from __future__ import annotations

from calm_graph.evaluate.tasks.task import Task

LANGUAGES = {
    "ace": "Acehnese",
    "acm": "Mesopotamian Arabic",
    "ban": "Balinese",
    "bbc": "Toba Batak",
    "bho": "Bhojpuri",
    "bug": "Buginese",
    "ckb": "Central Kurdish",
    "ind": "Indonesian",
    "jav": "Javanese",
    "lij": "Ligurian",
    "mad": "Madurese",
    "mar": "Marathi",
    "min": "Minangkabau",
    "nij": "Ngaju",
    "nno": "Norwegian Nynorsk",
    "pol": "Polish",
    "sun": "Sundanese",
    "taq": "Tamasheq",
    "tha": "Thai",
    "tsn": "Setswana",
    "twi": "Twi",
}
"""ISO 639-3 code -> name, as prompts say it."""

TRAINED = ("nusax", "tico19", "nllb_seed")
"""Sets with rows to train and to choose on. FLORES is for testing only; its dev rows are examples."""

_FLORES_TEST = (
    "ace", "acm", "ban", "bho", "bug", "ckb", "jav", "lij", "mar", "min", "nno", "pol", "sun", "taq", "tha", "tsn",
    "twi",
)  # fmt: skip
_FLORES_DEV = ("acm", "ban", "lij", "mar", "min", "nno", "pol", "sun", "taq", "tha")
_OF_SET = {
    "nusax": ("ace", "ban", "bbc", "bug", "ind", "jav", "mad", "min", "nij", "sun"),
    "tico19": ("ckb", "mar"),
    "nllb_seed": ("ace", "ban", "bho", "lij", "taq"),
}
NUM_SHOTS = 5


def tasks() -> list[Task]:
    """Return a task for each set and language."""
    flores = [_task("flores200", language) for language in _FLORES_TEST]
    return flores + [_task(name, language) for name in TRAINED for language in _OF_SET[name]]


def _task(name: str, language: str) -> Task:
    trained = tuple(other for other in TRAINED if language in _OF_SET[other])
    shots_from = _shots_from(name, language)
    return Task(
        suite="translation",
        name=name,
        language=language,
        data=f"translation/{name}/{language}-en.test.jsonl",
        train=tuple(f"translation/{other}/{language}-en.train.jsonl" for other in trained),
        dev=tuple(f"translation/{other}/{language}-en.dev.jsonl" for other in trained),
        prompt=f"{LANGUAGES[language]}: {{src}}\nEnglish:",
        reference=" {en}",
        metrics=("chrf", "bleu", "bits_per_byte"),
        num_shots=NUM_SHOTS if shots_from else 0,
        shots_from=shots_from,
        stop=("\n",),
        max_new_tokens=128,
    )


def _shots_from(name: str, language: str) -> str | None:
    """Return the dev rows of the same set, or of another in this language; Setswana and Twi have test rows only."""
    if name != "flores200" or language in _FLORES_DEV:
        return f"translation/{name}/{language}-en.dev.jsonl"
    trained = [other for other in TRAINED if language in _OF_SET[other]]
    return f"translation/{trained[0]}/{language}-en.dev.jsonl" if trained else None
