"""What is asked of a model, and how its answers are measured: a small declared object over a file of rows."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from calm_graph.declare.base import Declared
from calm_graph.errors import EvaluationError
from calm_graph.evaluate.measures.metrics import metric
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.tasks.template import check_template, fill

Split = Literal["test", "dev", "train"]

DATA_VARIABLE = "CALM_GRAPH_DATA"
"""The environment variable that names the folder of data."""

_ORDER_SEED = 0
"""Of the order that `limit` takes rows in: the same for everybody, so that results can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row, as it is asked.

    Args:
        prompt: What the system reads, examples included.
        reference: The completion that is scored, with the white space that stands before it.
        target: What an answer is compared with.
        row: The fields.
    """

    prompt: str
    reference: str
    target: str
    row: Mapping[str, Any]


class Task(Declared):
    """A file of rows, what is asked about each, and how answers are measured.

    Args:
        name: Within its suite and language.
        suite: What it belongs to.
        language: Of the rows, or another word that tells variants of the task apart.
        data: JSON Lines of the test rows, from the data folder or absolute.
        also_from: JSON Lines whose rows lend their fields to the test rows of the same `id`, where those have none of
            the name: what is the same in all languages, and stands in one file.
        train: Files of rows to train on, with the same templates.
        dev: Files of rows to choose on.
        prompt: Template over a row's fields.
        reference: Template of the right completion, with the white space before it.
        train_reference: Template of the completion of rows to train and to choose on; None: the reference.
        target: Template of what an answer is compared with; None: the reference.
        answer: What of an answer counts for `accuracy`: its `text` (case, white space and a full stop at the end do
            not count), the text `packed` (without any white space) or the last `number` in it.
        program: Template of a program that ends without an error if the answer is right, for pass@k; `{answer}` is
            the answer.
        metrics: What is measured.
        num_shots: Examples before the prompt, for systems that were not trained on the task.
        shots_from: File of their rows.
        shots_lang: Only rows whose field `lang` is this.
        shot_prompt: Template of an example; None: that of the task.
        shot_reference: Template of its answer; None: that of the task.
        stop: Texts that end an answer.
        max_new_tokens: The most of an answer.
        num_samples: Answers to each prompt.
        temperature: Of the draws; 0 is greedy.
        limit: Only so many rows, in an order that is always the same; None: all.
    """

    root: ClassVar[str] = "task"

    name: str = Field(min_length=1)
    suite: str = "own"
    language: str = ""
    data: str = Field(min_length=1)
    also_from: str | None = None
    train: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    prompt: str
    reference: str
    train_reference: str | None = None
    target: str | None = None
    answer: Literal["text", "packed", "number"] = "text"
    program: str | None = None
    metrics: tuple[str, ...] = Field(min_length=1)
    num_shots: int = Field(default=0, ge=0)
    shots_from: str | None = None
    shots_lang: str | None = None
    shot_prompt: str | None = None
    shot_reference: str | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=128, ge=1)
    num_samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("prompt", "reference", "train_reference", "target", "program", "shot_prompt", "shot_reference")
    @classmethod
    def _templates_can_be_filled(cls, value: str | None) -> str | None:
        if value is not None:
            check_template(value)
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            metric(name)
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> Task:
        if self.num_shots and self.shots_from is None:
            raise ValueError(
                f"num_shots is {self.num_shots}, so shots_from must name the file that they are taken from"
            )
        for name in self.metrics:
            found = metric(name)
            if found.needs == "programs" and self.program is None:
                raise ValueError(f"metric {name!r} runs programs, so `program` must say how one is made of an answer")
            if found.num_samples > self.num_samples:
                raise ValueError(f"metric {name!r} needs num_samples of at least {found.num_samples}")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError("num_samples is above 1, so temperature must be above 0: greedy answers are all the same")
        return self

    @property
    def key(self) -> tuple[str, str, str]:
        """Suite, name and language."""
        return self.suite, self.name, self.language

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return "/".join(part for part in self.key if part)

    def decoding(self, *, seed: int = 0) -> Decoding:
        """How its answers are made."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            num_samples=self.num_samples,
            temperature=self.temperature,
            seed=seed,
        )

    def items(self, *, folder: Path | None = None, few_shot: bool = False, seed: int = 0) -> list[Item]:
        """Read the test rows, each with what is asked.

        Args:
            folder: Of the data; None: the one that CALM_GRAPH_DATA names.
            few_shot: Whether examples come before each prompt.
            seed: Which rows are the examples.

        Returns:
            The rows, in the order of the file.

        Raises:
            EvaluationError: A file cannot be read, or a row does not have what the templates name.
        """
        before = self._shots(folder, seed) if few_shot and self.num_shots else ""
        rows = self._test_rows(folder)
        if self.limit is not None and self.limit < len(rows):
            order = list(range(len(rows)))
            random.Random(_ORDER_SEED).shuffle(order)
            rows = [rows[index] for index in sorted(order[: self.limit])]
        items = []
        for place, row in rows:
            reference = self._fill("reference", self.reference, row, place)
            target = reference if self.target is None else self._fill("target", self.target, row, place)
            prompt = before + self._fill("prompt", self.prompt, row, place)
            items.append(Item(prompt=prompt, reference=reference, target=target.strip(), row=row))
        return items

    def rows(self, split: Split, *, folder: Path | None = None) -> list[dict[str, str]]:
        """Return rows as training takes them.

        Args:
            split: Which.
            folder: Of the data; None: the one that CALM_GRAPH_DATA names.

        Returns:
            `{"prompt", "completion"}` rows of all files of the split, without examples before them.

        Raises:
            EvaluationError: There are none, or they cannot be read.
        """
        if split == "test":
            found, template = self._test_rows(folder), self.reference
        else:
            files = self.dev if split == "dev" else self.train
            if not files:
                raise EvaluationError(f"task {self.label}: {split}: the task names no files of these rows")
            found = [pair for file in files for pair in self._read(file, folder)]
            template = self.reference if self.train_reference is None else self.train_reference
        return [
            {
                "prompt": self._fill("prompt", self.prompt, row, place),
                "completion": self._fill("reference", template, row, place),
            }
            for place, row in found
        ]

    def _test_rows(self, folder: Path | None) -> list[tuple[str, dict[str, Any]]]:
        rows = self._read(self.data, folder)
        if self.also_from is None:
            return rows
        lenders = {row["id"]: row for _, row in self._read(self.also_from, folder) if _has_id(row)}
        for place, row in rows:
            if not _has_id(row) or row["id"] not in lenders:
                raise EvaluationError(
                    f"task {self.label}: also_from: {place}: got the id {row.get('id')!r}, but {self.also_from} has no "
                    "row of it; leave the row out, or name a file that has one"
                )
        return [(place, {**lenders[row["id"]], **row}) for place, row in rows]

    def _shots(self, folder: Path | None, seed: int) -> str:
        assert self.shots_from is not None
        rows = self._read(self.shots_from, folder)
        if self.shots_lang is not None:
            rows = [(place, row) for place, row in rows if row.get("lang") == self.shots_lang]
        if len(rows) < self.num_shots:
            raise EvaluationError(
                f"task {self.label}: num_shots: got {self.num_shots}, but {self.shots_from} has {len(rows)} such rows"
            )
        rows = random.Random(f"{seed}/{self.label}").sample(rows, self.num_shots)
        return "".join(
            self._fill("shot_prompt", self.prompt if self.shot_prompt is None else self.shot_prompt, row, place)
            + self._fill(
                "shot_reference", self.reference if self.shot_reference is None else self.shot_reference, row, place
            ).rstrip()
            + "\n\n"
            for place, row in rows
        )

    def _fill(self, name: str, template: str, row: Mapping[str, Any], place: str) -> str:
        try:
            return fill(template, row)
        except ValueError as error:
            raise EvaluationError(f"task {self.label}: {name}: {place}: {error}") from None

    def _read(self, file: str, folder: Path | None) -> list[tuple[str, dict[str, Any]]]:
        path = Path(file).expanduser()
        if not path.is_absolute():
            path = data_folder(folder) / path
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(
                f"task {self.label}: {path}: cannot be read ({error}); name the folder of the data with --data or in "
                f"the variable {DATA_VARIABLE}"
            ) from None
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise EvaluationError(f"task {self.label}: {path}:{number}: not readable as JSON: {error}") from None
            if not isinstance(row, dict):
                raise EvaluationError(
                    f"task {self.label}: {path}:{number}: got a {type(row).__name__}, but an object is needed"
                )
            rows.append((f"{path}:{number}", row))
        if not rows:
            raise EvaluationError(f"task {self.label}: {path}: there are no rows in it")
        return rows


def _has_id(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("id"), (str, int))


def data_folder(folder: Path | None = None) -> Path:
    """Return the folder of the data: the one that was given, else that of CALM_GRAPH_DATA, else this one."""
    return folder if folder is not None else Path(os.environ.get(DATA_VARIABLE, "."))
