"""Training the attachments of a composition; the package can be called: `calm_graph.train(composition, data=...)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from calm_graph.declare.settings import TrainSettings
from calm_graph.train.loop import TrainingInterrupted, TrainResult
from calm_graph.train.run import train

__all__ = ["TrainResult", "TrainSettings", "TrainingInterrupted", "train"]


class _CallableModule(ModuleType):
    """This package, made callable.

    `from calm_graph import train` finds this package once anything has imported it, so it must do what the function
    of the same name does.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> TrainResult:
        """Call `train`."""
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
