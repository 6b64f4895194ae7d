"""What can go wrong with cards and with the weights behind them."""

from __future__ import annotations

from collections.abc import Sequence


class RegistryError(Exception):
    """Base of every error that this package raises on its own account."""


class CardError(RegistryError):
    """A card, a file of cards or an entry point that declares cards is wrong."""


class UnknownModelError(RegistryError, KeyError):
    """A name that no card has; carries the nearest names that exist."""

    def __init__(self, name: str, nearest: Sequence[str] = (), note: str = "") -> None:
        self.name = name
        self.nearest = tuple(nearest)
        near = ", ".join(repr(other) for other in self.nearest)
        hint = f"nearest: {near}" if near else "registry.names() lists the known ones"
        self.message = f"got {name!r}, which the registry does not know; {hint}" + (f" ({note})" if note else "")
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message  # KeyError would show the repr of its argument


class UnknownLayoutError(RegistryError):
    """A model whose blocks cannot be found, because `layouts` has no row that fits it."""


class FactMismatchError(RegistryError):
    """Facts on a card differ from the config of the model that the card names."""


class WeightsError(RegistryError):
    """Weights that are missing, incomplete or in a format that is not read."""


class FingerprintError(WeightsError):
    """The files of a model are not the ones that were recorded."""


class RemoteError(RegistryError):
    """A service cannot be used as it is asked: a wrong key, another model, or an answer that is none."""


class RemoteUnavailableError(RemoteError):
    """A service does not answer, now.

    Args:
        message: Which, and what happened.
        retry_after_s: When it should be asked again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)
