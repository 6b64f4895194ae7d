"""The errors that calm_graph raises on purpose; each message says where, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class CalmGraphError(Exception):
    """Base of every error that calm_graph raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a declaration.

    Args:
        path: Where it is, as the user would write it: `composition.augmenters[1].attach[2].anchor_layer`.
        message: What came, what is allowed and what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class DeclarationError(CalmGraphError, ValueError):
    """All the mistakes of one declaration, reported together.

    Args:
        problems: The mistakes, in the order of the declaration.
        where: What was declared: a file name or the composition's name.
    """

    def __init__(self, problems: Iterable[Problem], *, where: str = "composition") -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.where = where
        # Only the positional argument goes into `args`; `where` travels in `__dict__`, so the error survives pickling
        # between processes.
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"{self.where}: {count} problem{'' if count == 1 else 's'}"]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems])


class CheckpointError(CalmGraphError):
    """A checkpoint cannot be written or read: damaged, newer than this version, or made for other frozen models."""


class OnnxError(CalmGraphError):
    """An ONNX export cannot be made, read or run, or its states are not those of the model it came from."""


class InputError(CalmGraphError, ValueError):
    """A request or a row of data cannot be used as it is."""


class StatesError(CalmGraphError):
    """Cached states cannot be made, or are not those of the composition and the rows that ask for them."""


class TrainingError(CalmGraphError):
    """Training cannot start or go on."""


class EvaluationError(CalmGraphError):
    """A task or a system cannot be evaluated as it is asked."""


class ServingError(CalmGraphError):
    """A request cannot be answered, through no fault of its own."""


class AugmenterError(ServingError):
    """A service that gives an augmenter's states refuses, or answers something else: somebody has to look at it."""


class AugmenterUnavailableError(AugmenterError):
    """A service that gives an augmenter's states does not answer, now."""


class OverloadedError(ServingError):
    """There is no room for another request now.

    Args:
        message: What is full.
        retry_after_s: When there should be room again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:  # a default, so that it can be unpickled
        self.retry_after_s = retry_after_s
        super().__init__(message)
