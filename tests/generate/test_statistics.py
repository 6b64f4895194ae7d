"""Counts of several engines together."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from calm_graph.generate.statistics import EngineStatistics, added


def test_engines_are_added_up() -> None:
    first = EngineStatistics(num_running=2, augmenter_s={"a": 1.0}, contribution={"a": 0.2, "b": 1.0})
    second = EngineStatistics(num_running=3, augmenter_s={"a": 0.5, "b": 2.0}, contribution={"a": 0.4})
    total = added([asdict(first), asdict(second), asdict(EngineStatistics())])
    assert total["num_running"] == 5
    assert total["augmenter_s"] == {"a": 1.5, "b": 2.0}
    assert total["contribution"] == {"a": pytest.approx(0.3), "b": 1.0}
    assert added([]) == {}
