"""Which augmenters are worth running for a request: decided by a function, or learned from the prompt's states."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from calm_graph.augmenters.taps import BlockCall, up_to
from calm_graph.errors import CheckpointError, InputError
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import prompt_ids


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
        found_A = torch.sigmoid(self._weights_AD @ mean_state(self._model, ids, layer=self.layer) + self._biases_A)
        return dict(zip(self.names, found_A.tolist(), strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one safetensors file."""
        facts = {
            "layer": self.layer,
            "names": self.names,
            "threshold": self.threshold,
            "anchor": self._model.plan.anchor.name,
        }
        tensors = {"weights": self._weights_AD.contiguous(), "biases": self._biases_A.contiguous()}
        save_file(tensors, path, metadata={"calm_graph_selector": json.dumps(facts)})

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


def fit_selector(
    model: ComposedModel,
    rows: Iterable[tuple[str, str]],
    *,
    layer: int | None = None,
    min_gain: float = 0.01,
    threshold: float = 0.5,
    decay: float = 1e-2,
) -> LearnedSelector:
    """Learn from examples which augmenters are of use to a prompt.

    An augmenter is of use to an example if the completion is likelier with all augmenters than with all but it.

    Args:
        model: A trained composition.
        rows: Prompts and completions.
        layer: The anchor's block whose states are looked at; None is a quarter of the way up.
        min_gain: How much likelier, in nats per token of the completion.
        threshold: Of the selector; lower runs augmenters more often.
        decay: Of the weights' squares.

    Returns:
        The selector.

    Raises:
        InputError: There are no rows.
    """
    layer = model.plan.anchor.num_layers // 4 if layer is None else layer
    names = list(dict.fromkeys(edge.source for edge in model.plan.into(model.plan.anchor.name)))
    states, useful = [], []
    for prompt, completion in rows:
        ids = prompt_ids(model.tokenizer, prompt)
        answer = model.tokenizer(completion, add_special_tokens=False)["input_ids"]
        states.append(mean_state(model, ids, layer=layer))
        whole = _loss(model, ids, answer, without=None)
        useful.append([float(_loss(model, ids, answer, without=name) - whole > min_gain) for name in names])
    if not states:
        raise InputError("rows: got none, but at least one is needed")
    states_RD, useful_RA = torch.stack(states), torch.tensor(useful)
    # Centred and scaled while fitting, and undone in the weights, so that one step size suits every anchor.
    mean_D, scale_D = states_RD.mean(dim=0), states_RD.std(dim=0, correction=0) + 1e-6
    inputs_RD = (states_RD - mean_D) / scale_D
    weights_AD = torch.zeros(len(names), states_RD.shape[1], requires_grad=True)
    biases_A = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_AD, biases_A], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits_RA = inputs_RD @ weights_AD.T + biases_A
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_RA, useful_RA)
        loss = loss + decay * weights_AD.square().sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    scaled_AD = weights_AD.detach() / scale_D
    return LearnedSelector(
        model,
        layer=layer,
        names=names,
        weights_AD=scaled_AD,
        biases_A=biases_A.detach() - scaled_AD @ mean_D,
        threshold=threshold,
    )


@torch.no_grad()
def mean_state(model: ComposedModel, ids: Sequence[int], *, layer: int) -> torch.Tensor:
    """Return the mean over a prompt of the anchor's own states after a block; what is above does not run.

    Args:
        model: Whose anchor.
        ids: Of the anchor's tokenizer.
        layer: The block.

    Returns:
        float32 [D], on the CPU.
    """
    call = BlockCall(taps=frozenset([layer]))
    with up_to(layer, call):
        model.anchor(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return call.states[layer][0].float().mean(dim=0).cpu()


@torch.no_grad()
def _loss(model: ComposedModel, ids: Sequence[int], answer: Sequence[int], *, without: str | None) -> float:
    both = torch.tensor([[*ids, *answer]], device=model.device)
    labels = both.clone()
    labels[:, : len(ids)] = -100
    with model.augmenters({} if without is None else {without: 0.0}):
        loss = model(both, labels=labels).loss
    return float(loss)


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
