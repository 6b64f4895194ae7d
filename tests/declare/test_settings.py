"""Training settings: defaults, limits, and errors that name the setting."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from calm_graph.declare.settings import TrainSettings
from calm_graph.errors import DeclarationError


def test_defaults_hold_and_settings_are_frozen() -> None:
    settings = TrainSettings()
    assert settings.precision == "fp32"
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_steps = 3  # type: ignore[misc]


def test_settings_survive_json() -> None:
    settings = TrainSettings(betas=(0.8, 0.9), patience=3)
    assert TrainSettings.parse(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"lerning_rate": 1}, r"settings\.lerning_rate: unknown key; did you mean 'learning_rate'\?"),
        ({"max_steps": 0}, r"settings\.max_steps: got 0: .*greater than or equal to 1"),
        ({"min_lr_ratio": 2}, r"settings\.min_lr_ratio: got 2: .*less than or equal to 1"),
        ({"betas": [1.0, 0.9]}, r"settings\.betas: got \[1.0, 0.9\]: .*less than 1"),
        ({"long_rows": "drop"}, r"settings\.long_rows: got 'drop', but allowed are 'error', 'skip' or 'cut'"),
        ({"tokens_per_batch": 1}, r"settings\.tokens_per_batch: got 1: .*greater than or equal to 2"),
        ({"batch_size": 2, "gradient_accumulation_steps": 4}, "cannot be run in more than 2 pieces"),
    ],
)
def test_a_wrong_setting_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        TrainSettings.parse(data)


def test_all_wrong_settings_are_reported_at_once() -> None:
    with pytest.raises(DeclarationError, match=r"file\.json: 2 problems\n.*max_steps(.|\n)*seed"):
        TrainSettings.parse({"max_steps": -1, "seed": -1}, where="file.json")


def test_with_a_budget_of_tokens_a_batch_has_no_number_of_samples() -> None:
    assert TrainSettings(tokens_per_batch=4096, batch_size=1, gradient_accumulation_steps=4).tokens_per_batch == 4096


def test_updated_copies_are_checked() -> None:
    assert TrainSettings().updated(max_steps=7).max_steps == 7
    with pytest.raises(DeclarationError, match=r"settings\.max_steps"):
        TrainSettings().updated(max_steps=0)
