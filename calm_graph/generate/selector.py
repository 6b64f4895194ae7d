"""Which augmenters are worth running for a request: decided by a function, or by a gate on the prompt's states."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import rms_norm

from calm_graph.augmenters.taps import BlockCall, up_to
from calm_graph.errors import CheckpointError, InputError
from calm_graph.model.composed import ComposedModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a selector sees of a request.

    Args:
        text: What augmenters would read.
        ids: What the anchor reads.
        augmenters: Names to choose from.
    """

    text: str
    ids: tuple[int, ...]
    augmenters: tuple[str, ...]


Selector = Callable[[Prompt], Iterable[str]]
"""Returns the names of the augmenters worth running; the others are not run for the request."""


def chosen(selector: Selector, prompt: Prompt) -> set[str]:
    """Return the names that a selector chooses.

    Raises:
        InputError: One of them is not to choose from.
    """
    wanted = set(selector(prompt))
    if unknown := wanted.difference(prompt.augmenters):
        allowed = ", ".join(prompt.augmenters)
        raise InputError(f"selector: chose {sorted(unknown)}, but it may choose among {allowed}")
    return wanted


class LearnedSelector:
    """A linear gate for each augmenter, on the mean state of the prompt after one of the anchor's blocks.

    Args:
        model: The composition; its anchor is run up to that block.
        layer: The block.
        names: Augmenters that it decides about; others are always worth running.
        weights_AD: float, a row for each name.
        biases_A: float.
        threshold: Probability of being of use from which an augmenter is run.
    """

    def __init__(
        self,
        model: ComposedModel,
        *,
        layer: int,
        names: Sequence[str],
        weights_AD: torch.Tensor,
        biases_A: torch.Tensor,
        threshold: float = 0.5,
    ) -> None:
        self.layer, self.names, self.threshold = layer, tuple(names), threshold
        self._model, self._weights_AD, self._biases_A = model, weights_AD, biases_A

    def __call__(self, prompt: Prompt) -> list[str]:
        """Choose among the augmenters of a request."""
        likely = self.probabilities(prompt.ids)
        return [name for name in prompt.augmenters if likely.get(name, 1.0) >= self.threshold]

    def probabilities(self, ids: Sequence[int]) -> dict[str, float]:
        """How likely each augmenter is to be of use to a prompt.

        Args:
            ids: Of the anchor's tokenizer.
        """
        state_D = mean_state(self._model, ids, layer=self.layer)
        return dict(zip(self.names, self.likely(state_D).tolist(), strict=True))

    def likely(self, states_D: torch.Tensor) -> torch.Tensor:
        """Return the same from what `mean_state` finds: float32 [..., D] to [..., A]."""
        return torch.sigmoid(states_D @ self._weights_AD.T + self._biases_A)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one safetensors file, whole or not at all."""
        facts = {
            "layer": self.layer,
            "names": self.names,
            "threshold": self.threshold,
            "anchor": self._model.plan.anchor.name,
        }
        tensors = {"weights": self._weights_AD.contiguous(), "biases": self._biases_A.contiguous()}
        scratch = Path(f"{os.fspath(path)}.tmp")
        scratch.write_bytes(save(tensors, metadata={"calm_graph_selector": json.dumps(facts)}))
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ComposedModel) -> LearnedSelector:
        """Read it.

        Args:
            path: What `save` wrote.
            model: The composition it was made for.

        Raises:
            CheckpointError: The file is none of `save`'s, or was made for another anchor or other augmenters.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["calm_graph_selector"])
                weights_AD, biases_A = file.get_tensor("weights"), file.get_tensor("biases")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: is no selector that LearnedSelector.save wrote ({error})") from error
        known = {edge.source for edge in model.plan.edges}
        if facts["anchor"] != model.plan.anchor.name or not known.issuperset(facts["names"]):
            raise CheckpointError(
                f"{path}: was made for {', '.join(facts['names'])} and the anchor {facts['anchor']!r}, but the "
                f"composition has {', '.join(sorted(known))} and {model.plan.anchor.name!r}; fit another"
            )
        return cls(
            model,
            layer=facts["layer"],
            names=facts["names"],
            weights_AD=weights_AD,
            biases_A=biases_A,
            threshold=facts["threshold"],
        )


@torch.no_grad()
def mean_state(model: ComposedModel, ids: Sequence[int], *, layer: int) -> torch.Tensor:
    """Return the mean over a prompt of the anchor's own states after a block; what is above does not run.

    Each token's state is brought to the same size first: attention rests on the first token of many models, whose state
    is a hundred times as large as the others.

    Args:
        model: Whose anchor.
        ids: Of the anchor's tokenizer; at least one.
        layer: The block.

    Returns:
        float32 [D], on the CPU.
    """
    call = BlockCall(taps=frozenset([layer]))
    with up_to(layer, call):
        model.anchor(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    states_TD = call.states[layer][0].float()
    return rms_norm(states_TD, states_TD.shape[-1:]).mean(dim=0).cpu()


def read_selector(text: str, model: ComposedModel) -> Selector:
    """Return the selector that a setting names.

    Args:
        text: `package.module:function`, or the path of a file that `LearnedSelector.save` wrote.
        model: The composition.

    Raises:
        InputError: There is no such function.
        CheckpointError: The file is no selector for this composition.
    """
    if Path(text).suffix == ".safetensors":
        return LearnedSelector.load(text, model)
    module, _, name = text.partition(":")
    try:
        found: Selector = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"selector: got {text!r}, but 'package.module:function' or a .safetensors file is needed ({error})"
        ) from error
    return found
