"""A composition as a model of lm-evaluation-harness, so that all its tasks run on one.

```python
import lm_eval
from calm_graph.evaluate.lm_eval_model import CalmGraphLM

lm_eval.simple_evaluate(model=CalmGraphLM("runs/helpdesk"), tasks=["arc_easy"])
```

On the command line, with this module imported first, it is the model `calm_graph`:
`python -m calm_graph.evaluate.lm_eval_model --model calm_graph --model_args pretrained=runs/helpdesk --tasks arc_easy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lm_eval.models  # noqa: F401  # it names its own models only while none of ours is named
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from calm_graph.errors import EvaluationError
from calm_graph.evaluate.systems.base import Decoding
from calm_graph.evaluate.systems.engine import EngineSystem
from calm_graph.evaluate.systems.scoring import Score
from calm_graph.model.composed import ComposedModel

_KNOWN = {"until", "max_gen_toks", "max_tokens", "do_sample", "temperature", "top_p", "num_return_sequences"}
_MAX_NEW_TOKENS = 256


@register_model("calm_graph")
class CalmGraphLM(LM):  # type: ignore[misc]
    """A trained composition.

    Args:
        pretrained: Checkpoint: a folder, hub id or address.
        augmenters: `off` is the anchor alone; `on` the composition.
        dtype: Of the frozen weights.
        batch_size: Answers made at the same time, and rows scored at once.
        device: Where it runs.
        max_batch_size: Not looked at.
        kwargs: None is known.

    Raises:
        EvaluationError: An argument is not known.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        augmenters: str = "on",
        dtype: str = "float32",
        batch_size: int | str = 16,
        device: str | None = None,
        max_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise EvaluationError(f"model_args: got {', '.join(kwargs)}, but pretrained, augmenters, dtype are known")
        if augmenters not in ("on", "off"):
            raise EvaluationError(f"augmenters: got {augmenters!r}, but 'on' and 'off' are allowed")
        model = ComposedModel.from_pretrained(pretrained, dtype=dtype, device_map=device)
        size = 16 if str(batch_size).startswith("auto") else int(batch_size)
        if augmenters == "off":
            self._system = EngineSystem.anchor(model, batch_size=size)
        else:
            self._system = EngineSystem(model, batch_size=size)
        self._device = model.device

    @property
    def tokenizer_name(self) -> str:
        """Name of the anchor's tokenizer, for caches."""
        return str(self._system.model.plan.anchor.name)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations of contexts.

        Args:
            requests: Their `args` are `(context, continuation)`.
            disable_tqdm: Not looked at: nothing is shown.

        Returns:
            Log-likelihood of each, and whether greedy decoding would give it.
        """
        pairs = [_moved(*request.args) for request in requests]
        return [(-score.nats, score.is_greedy) for score in self._scored(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts; each must fit into the anchor's context.

        Args:
            requests: Their `args` are `(text,)`.
            disable_tqdm: Not looked at: nothing is shown.

        Returns:
            Log-likelihood of each.
        """
        return [-score.nats for score in self._scored([("", request.args[0]) for request in requests])]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a stop text.

        Args:
            requests: Their `args` are `(context, settings)`.
            disable_tqdm: Not looked at: nothing is shown.

        Returns:
            The new text of each.
        """
        found: list[str] = [""] * len(requests)
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_decoding(request.args[1]), []).append(index)
        for decoding, indices in groups.items():
            answers = self._system.generate([requests[index].args[0] for index in indices], decoding, done=_ignore)
            for index, (answer,) in zip(indices, answers, strict=True):
                found[index] = answer
        return found

    def _scored(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        return self._system.score_tokens([prompt for prompt, _ in pairs], [after for _, after in pairs], done=_ignore)


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Give white space at the end of a context to the continuation, as the harness's own models do."""
    end = len(context.rstrip())
    return context[:end], context[end:] + continuation


def _decoding(settings: dict[str, Any]) -> Decoding:
    if unknown := sorted(settings.keys() - _KNOWN):
        raise EvaluationError(f"generation_kwargs: got {', '.join(unknown)}, but {', '.join(sorted(_KNOWN))} are known")
    until = settings.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    most = settings.get("max_gen_toks", settings.get("max_tokens", _MAX_NEW_TOKENS))
    draws = bool(settings.get("do_sample", False))
    return Decoding(
        max_new_tokens=int(most),
        stop=tuple(text for text in until if text),
        temperature=float(settings.get("temperature", 1.0)) if draws else 0.0,
        top_p=float(settings.get("top_p", 1.0)) if draws else 1.0,
    )


def _ignore(index: int) -> None:
    """Nothing is shown."""


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
