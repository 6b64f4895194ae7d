"""One of several systems answers each request: the one that was better on the task's dev rows, or knows the prompt."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.baselines.words import words_of
from calm_graph.evaluate.systems.asking import Asking
from calm_graph.evaluate.systems.base import Decoding, Done, System
from calm_graph.evaluate.tasks.task import Task

logger = logging.getLogger(__name__)

Rule = Callable[[Sequence[str]], list[int]]
"""For each prompt, which system answers it."""

MAX_DEV_ROWS = 32
"""By so many of a task's dev rows the better system is chosen: where that leaves doubt, little hangs on it."""


class RoutingSystem:
    """Sends each request to one of several systems.

    Args:
        systems: Whom there is to choose from, all with or all without examples before prompts.
        rule: Who is chosen.
        rule_identity: What the rule's choices depend on.

    Raises:
        EvaluationError: There are fewer than two systems, or only some of them take examples.
    """

    name = "routing"

    def __init__(self, systems: Sequence[System], rule: Rule, *, rule_identity: str) -> None:
        if len(systems) < 2:
            raise EvaluationError(f"{self.name}: got {len(systems)} systems, but two or more are needed")
        if len({system.few_shot for system in systems}) > 1:
            takers = " and ".join(system.name for system in systems if system.few_shot)
            raise EvaluationError(
                f"{self.name}: only {takers} take examples before the prompt, so one prompt cannot be sent to any of "
                "the systems; choose among systems that were all trained on the task, or all not"
            )
        self.systems, self.rule = tuple(systems), rule
        self.few_shot = systems[0].few_shot
        self.identity = json.dumps({"routing": rule_identity, "systems": [system.identity for system in systems]})
        self.chosen: dict[str, str] = {}
        """Prompt -> name of the system that it was sent to."""

    def generate(self, prompts: Sequence[str], decoding: Decoding, *, done: Done) -> list[list[str]]:
        """See `System.generate`."""
        answers: list[list[str]] = [[] for _ in prompts]
        for system, indices in self._shares(prompts):
            found = system.generate([prompts[index] for index in indices], decoding, done=_moved(done, indices))
            for index, each in zip(indices, found, strict=True):
                answers[index] = each
        return answers

    def score(self, prompts: Sequence[str], completions: Sequence[str], *, done: Done) -> list[float]:
        """See `System.score`."""
        nats = [math.nan] * len(prompts)
        for system, indices in self._shares(prompts):
            asked = [prompts[index] for index in indices], [completions[index] for index in indices]
            for index, each in zip(indices, system.score(*asked, done=_moved(done, indices)), strict=True):
                nats[index] = each
        return nats

    def _shares(self, prompts: Sequence[str]) -> list[tuple[System, list[int]]]:
        choices = self.rule(prompts)
        shares = []
        for place, system in enumerate(self.systems):
            indices = [index for index, choice in enumerate(choices) if choice == place]
            self.chosen.update((prompts[index], system.name) for index in indices)
            if indices:
                logger.info("routing: %d of %d prompts to %s", len(indices), len(prompts), system.name)
                shares.append((system, indices))
        return shares


@dataclass(slots=True)
class TaskRule:
    """For each task, the system that predicts its dev rows best.

    Args:
        choices: Label of a task -> place of the system.
        bits: Label of a task -> bits per byte of its dev rows, by system.
    """

    choices: dict[str, int] = field(default_factory=dict)
    bits: dict[str, list[float]] = field(default_factory=dict)
    _by_prompt: dict[str, int] = field(default_factory=dict)

    @classmethod
    def chosen_on_dev(
        cls,
        tasks: Sequence[Task],
        systems: Sequence[System],
        *,
        asking: Asking,
        data: Path | None = None,
        seed: int = 0,
        max_rows: int = MAX_DEV_ROWS,
    ) -> TaskRule:
        """Score the dev rows of every task with every system.

        Args:
            tasks: What will be asked.
            systems: Whom there is to choose from.
            asking: How they are asked.
            data: Folder of the tasks' files.
            seed: Of examples before prompts.
            max_rows: The most rows of each task, equally many of each of its dev files.

        Returns:
            The rule.

        Raises:
            EvaluationError: A task names no dev rows.
            StoppedError: The run was asked to stop; what was scored is kept.
        """
        rule = cls()
        for task in tasks:
            if not task.dev:
                raise EvaluationError(
                    f"routing: task {task.label} names no dev rows to choose on; add `dev`, or choose by the prompt"
                )
            few_shot = systems[0].few_shot
            of_file = math.ceil(max_rows / len(task.dev))
            items = [
                item
                for file in task.dev
                for item in task.model_copy(update={"data": file, "limit": of_file}).items(
                    folder=data, few_shot=few_shot, seed=seed
                )
            ]
            pairs = [(item.prompt, item.reference) for item in items]
            num_bytes = sum(len(item.reference.encode()) for item in items)
            nats = [
                sum(asking.nats(system, pairs, names=("routing", *task.key, "dev", system.name))) for system in systems
            ]
            bits = [each / math.log(2) / num_bytes for each in nats]
            choice = min(range(len(systems)), key=bits.__getitem__)
            rule.choices[task.label], rule.bits[task.label] = choice, bits
            logger.info("routing: %s goes to %s (%.4f bits per byte)", task.label, systems[choice].name, bits[choice])
            for item in task.items(folder=data, few_shot=few_shot, seed=seed):
                rule._by_prompt[item.prompt] = choice
        return rule

    @property
    def identity(self) -> str:
        """What was chosen."""
        return json.dumps({"task": sorted(self.choices.items())})

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        """Return the choice for each prompt.

        Raises:
            EvaluationError: A prompt is of none of the tasks.
        """
        for index, prompt in enumerate(prompts):
            if prompt not in self._by_prompt:
                raise EvaluationError(
                    f"routing: prompts[{index}]: {prompt[-60:]!r} belongs to none of the tasks "
                    f"{', '.join(self.choices)}; choose by the prompt instead"
                )
        return [self._by_prompt[prompt] for prompt in prompts]


class PromptRule:
    """For each prompt, the system that predicts it best: the fewest nats for the text after its first word.

    Args:
        systems: Whom there is to choose from.
    """

    identity = "prompt"

    def __init__(self, systems: Sequence[System]) -> None:
        self.systems = tuple(systems)

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        """Return the choice for each prompt; the first system where a prompt is a single word."""
        choices = [0] * len(prompts)
        # The first word is read by all and scored by none: not every model has a token that begins a text.
        words = {index: words_of(prompt) for index, prompt in enumerate(prompts)}
        asked = [index for index in words if len(words[index]) > 1]
        if not asked:
            return choices
        firsts = [words[index][0] for index in asked]
        rests = ["".join(words[index][1:]) for index in asked]
        nats = [system.score(firsts, rests, done=lambda _: None) for system in self.systems]
        for place, index in enumerate(asked):
            choices[index] = min(range(len(self.systems)), key=lambda system: nats[system][place])
        return choices


def _moved(done: Done, indices: Sequence[int]) -> Done:
    return lambda place: done(indices[place])
