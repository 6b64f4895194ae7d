"""Training the attachments of a composition: `fit` takes a composition and rows, and leaves a folder that loads."""

from __future__ import annotations

from calm_graph.declare.settings import TrainSettings
from calm_graph.train.loop import TrainResult
from calm_graph.train.run import TrainingInterrupted, fit

__all__ = ["TrainResult", "TrainSettings", "TrainingInterrupted", "fit"]
