"""Which frozen models exist, and how their weights are found."""

from registry.card import ModelCard
from registry.cards import BUILT_IN
from registry.catalog import Registry

registry = Registry(BUILT_IN, entry_points=True)
"""The default registry: built-in cards, and those of installed packages."""

__all__ = ["ModelCard", "Registry", "registry"]
