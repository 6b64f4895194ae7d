"""calm_graph: compose a frozen language model with frozen augmenting models through small trained attachments.

Importing it imports neither torch nor transformers; names that need them are loaded at first use. From then on
`transformers.AutoModelForCausalLM.from_pretrained` loads a composition like any other model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calm_graph.autoclasses import watch_for_transformers
from calm_graph.declare.composition import At, Attachment, Augmenter, Composition, Every, at, every
from calm_graph.errors import (
    CalmGraphError,
    CheckpointError,
    DeclarationError,
    EvaluationError,
    InputError,
    OnnxError,
    Problem,
    StatesError,
    TrainingError,
)

if TYPE_CHECKING:
    from calm_graph.augmenters.onnx_export import export_augmenter, verify_export
    from calm_graph.augmenters.onnx_session import OnnxSettings
    from calm_graph.declare.files import load_composition
    from calm_graph.declare.settings import TrainSettings
    from calm_graph.declare.space import Space
    from calm_graph.evaluate.tasks.task import Task
    from calm_graph.model.build import build_model
    from calm_graph.model.composed import ComposedModel
    from calm_graph.plan.graph import Plan, make_plan
    from calm_graph.states.precompute import precompute
    from calm_graph.train.gate import fit_selector
    from calm_graph.train.ray_sweep import sweep
    from calm_graph.train.run import fit

__version__ = "0.1.0"

__all__ = [
    "At",
    "Attachment",
    "Augmenter",
    "CalmGraphError",
    "CheckpointError",
    "ComposedModel",
    "Composition",
    "DeclarationError",
    "EvaluationError",
    "Every",
    "InputError",
    "OnnxError",
    "OnnxSettings",
    "Plan",
    "Problem",
    "Space",
    "StatesError",
    "Task",
    "TrainSettings",
    "TrainingError",
    "at",
    "build_model",
    "every",
    "export_augmenter",
    "fit",
    "fit_selector",
    "load_composition",
    "make_plan",
    "precompute",
    "sweep",
    "verify_export",
]

# Name -> module that defines it; loaded at first use, so that `import calm_graph` stays fast.
_LAZY = {
    "ComposedModel": "calm_graph.model.composed",
    "Space": "calm_graph.declare.space",
    "OnnxSettings": "calm_graph.augmenters.onnx_session",
    "Task": "calm_graph.evaluate.tasks.task",
    "TrainSettings": "calm_graph.declare.settings",
    "build_model": "calm_graph.model.build",
    "export_augmenter": "calm_graph.augmenters.onnx_export",
    "fit": "calm_graph.train.run",
    "fit_selector": "calm_graph.train.gate",
    "sweep": "calm_graph.train.ray_sweep",
    "Plan": "calm_graph.plan.graph",
    "load_composition": "calm_graph.declare.files",
    "make_plan": "calm_graph.plan.graph",
    "precompute": "calm_graph.states.precompute",
    "verify_export": "calm_graph.augmenters.onnx_export",
}

watch_for_transformers()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
