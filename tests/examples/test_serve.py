"""The example runs against a real server."""

from __future__ import annotations

import pytest

from examples.serve.openai_client import main
from tests.http.conftest import serving


def test_the_client_asks_in_four_ways(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as served:
        main(["--base-url", f"{served.url}/v1", "price of apples"])
        last = served.client.requests[-1]
        assert last.contributions and served.client.requests[-2].scales == {"prices-garden": 0, "prices-kitchen": 0}
    shown = capsys.readouterr().out
    assert "garden: context of 192 tokens" in shown and "prices-garden 3.100" in shown
