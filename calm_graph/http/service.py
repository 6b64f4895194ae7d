"""What every route needs, and what it asks of it: which model, which limits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calm_graph.http.client import EngineClient, ServedModel
from calm_graph.http.errors import ApiError, BadValueError
from calm_graph.http.metrics import Metrics
from calm_graph.http.protocol import GenerationFields
from calm_graph.http.settings import HttpSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the routes of one app share.

    Args:
        client: Answers.
        settings: Limits.
        metrics: Counts.
    """

    client: EngineClient
    settings: HttpSettings
    metrics: Metrics

    def model(self, name: str) -> ServedModel:
        """Return a model.

        Args:
            name: As in /v1/models; "" is the default one.

        Returns:
            The model.

        Raises:
            ApiError: There is none of this name.
        """
        models = self.client.models
        if not name:
            return next(iter(models.values()))
        if name not in models:
            allowed = ", ".join(map(repr, models))
            raise ApiError(
                404,
                f"model: got {name[:100]!r}, but there is only {allowed}",
                code="model_not_found",
                param="model",
            )
        return models[name]


def asked_model(service: Service, body: GenerationFields) -> ServedModel:
    """Return the model that a body names, after checking what all kinds of completions share.

    Args:
        service: Has the models.
        body: Of the request.

    Returns:
        The model.

    Raises:
        ApiError: There is none of this name, or it has no such augmenter or token.
    """
    model = service.model(body.model)
    _check_augmenters(model, body.augmenters)
    ids = {"stop_token_ids": body.stop_token_ids, "logit_bias": [*map(int, body.logit_bias)]}
    check_token_ids(service.client.tokenizer, ids)
    return model


def _check_augmenters(model: ServedModel, scales: Mapping[str, float]) -> None:
    """Refuse factors of augmenters that a model does not have.

    Args:
        model: The model.
        scales: Augmenter -> factor.

    Raises:
        BadValueError: There is no such augmenter.
    """
    for name in scales:
        if name not in model.augmenters:
            nearest = difflib.get_close_matches(name, model.augmenters, n=3)
            known = f"nearest: {', '.join(map(repr, nearest))}" if nearest else f"it has {list(model.augmenters)}"
            message = f"got {name[:100]!r}, which {model.name!r} does not have; {known}"
            raise BadValueError("augmenters", message, code="unknown_augmenter")


def check_token_ids(tokenizer: Any, ids: Mapping[str, list[int]]) -> None:
    """Refuse token ids that the tokenizer does not have.

    Args:
        tokenizer: The anchor's.
        ids: Field of the request -> token ids.

    Raises:
        BadValueError: There is no such token.
    """
    num_tokens = len(tokenizer)
    for field, values in ids.items():
        if values and max(values) >= num_tokens:
            raise BadValueError(field, f"got token {max(values)}, but tokens are 0..{num_tokens - 1}")


def check_choices(settings: HttpSettings, num_choices: int, *, param: str) -> None:
    """Refuse too many answers to one request.

    Args:
        settings: Limits.
        num_choices: Of all prompts.
        param: The field that asks for them.

    Raises:
        BadValueError: They are too many.
    """
    if num_choices > settings.max_choices:
        message = f"{num_choices} choices are asked for, but this server allows {settings.max_choices}"
        raise BadValueError(param, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long the answer to a prompt may be.

    Args:
        param: The field of the prompt.
        asked: What the request allows; None is the default.
        least: What the request wants at least.
        default: Where the request says nothing, if there is so much room; None is all the room there is.
    """

    param: str
    asked: int | None
    least: int
    default: int | None

    def most(self, settings: HttpSettings, model: ServedModel, num_prompt_tokens: int) -> int:
        """Return how many tokens the answer to a prompt may have.

        Args:
            settings: Limits.
            model: Has a context.
            num_prompt_tokens: Of the prompt.

        Returns:
            The most new tokens.

        Raises:
            BadValueError: The prompt is empty, or it and its answer do not fit into the context or the limits.
        """
        if num_prompt_tokens == 0:
            raise BadValueError(self.param, "got no token, but at least one is needed")
        has = f"the prompt has {num_prompt_tokens} tokens"
        if settings.max_prompt_tokens is not None and num_prompt_tokens > settings.max_prompt_tokens:
            message = f"{has}, but this server allows {settings.max_prompt_tokens}; shorten it"
            raise BadValueError(self.param, message, code="context_length_exceeded")
        room = model.context_length - num_prompt_tokens
        if room < (1 if self.asked is None else self.asked):
            wanted = "" if self.asked is None else f" and {self.asked} new ones are asked for"
            message = f"{has}{wanted}, but the context of {model.name!r} is {model.context_length} tokens"
            raise BadValueError(self.param, message, code="context_length_exceeded")
        limit = settings.max_new_tokens
        if self.asked is not None and limit is not None and self.asked > limit:
            raise BadValueError("max_tokens", f"got {self.asked}, but this server allows {limit}")
        bounds = (self.default, limit) if self.asked is None else (self.asked,)
        most = min([room, *(bound for bound in bounds if bound is not None)])
        if self.least > most:
            raise BadValueError("min_tokens", f"got {self.least}, but the answer has at most {most} tokens")
        return most
