"""Make transformers' Auto classes know compositions as soon as, and only if, a program loads them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

_CONFIGS = "transformers.models.auto.configuration_auto"
_MODELS = "transformers.models.auto.modeling_auto"


def _register_config() -> None:
    from transformers import AutoConfig

    from calm_graph.model.config import CalmGraphConfig

    AutoConfig.register(CalmGraphConfig.model_type, CalmGraphConfig, exist_ok=True)


def _register_model() -> None:
    from transformers import AutoModelForCausalLM

    from calm_graph.model.composed import ComposedModel
    from calm_graph.model.config import CalmGraphConfig

    AutoModelForCausalLM.register(CalmGraphConfig, ComposedModel, exist_ok=True)


_ACTIONS: dict[str, Callable[[], None]] = {_CONFIGS: _register_config, _MODELS: _register_model}


def watch_for_transformers() -> None:
    """Register with transformers now if it is loaded, and otherwise at the moment it is.

    `import calm_graph` must stay light (declarations are checked in milliseconds, without torch), yet
    `AutoModelForCausalLM.from_pretrained(composition)` must work right after it.
    """
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; adds one action to the loading of two modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _ACTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _ACTIONS[name])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, after: Callable[[], None]) -> None:
        self._loader, self._after = loader, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._after()
