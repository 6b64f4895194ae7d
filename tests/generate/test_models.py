"""Compositions of one engine share what is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calm_graph.errors import InputError
from calm_graph.generate.models import load_models
from tests.model.cases import PROMPTS, compose, encoded
from tests.model.pico import Zoo


def test_frozen_models_are_loaded_once_and_answers_are_the_same(zoo: Zoo, tmp_path: Path) -> None:
    expected = {}
    for case in ("same", "mixed"):
        model = compose(zoo, case)
        model.save_pretrained(tmp_path / case)
        ids, mask = encoded(model, PROMPTS)
        with torch.no_grad():
            expected[case] = model(ids, mask, prompt_lengths=mask.sum(1)).logits
    models = load_models([(case, tmp_path / case) for case in expected], registry=zoo.registry)
    assert models["same"].anchor is models["mixed"].anchor
    assert models["same"].graph.backend("same").body is models["mixed"].graph.backend("same").body
    for case, model in models.items():
        with torch.no_grad():
            torch.testing.assert_close(model(ids, mask, prompt_lengths=mask.sum(1)).logits, expected[case])


def test_names(zoo: Zoo, tmp_path: Path) -> None:
    compose(zoo, "same").save_pretrained(tmp_path / "a")
    assert [*load_models([(None, tmp_path / "a")], registry=zoo.registry)] == ["composition"]
    with pytest.raises(InputError, match="two are called 'composition'"):
        load_models([(None, tmp_path / "a")] * 2, registry=zoo.registry)
