"""HTTP says when an answer was made without an augmenter, and why one could not be made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from calm_graph.errors import AugmenterError, AugmenterUnavailableError
from calm_graph.generate.requests import GenerationRequest, Output, TokenOutput
from tests.http.conftest import serving
from tests.http.scripted import ScriptedClient


class Without(ScriptedClient):
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        async for output in super().generate(request):
            yield replace(output, skipped_augmenters=("prices-garden",))


class Failing(ScriptedClient):
    error: Exception = AugmenterUnavailableError("augmenter 'x': the service y did not answer within 1 s")

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        raise self.error
        yield TokenOutput(choice=0, token_id=None, text="")


ASKED = {
    "/v1/completions": {"prompt": "so", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "so"}], "max_tokens": 2},
}


@pytest.mark.parametrize("path", ASKED)
def test_an_answer_without_an_augmenter_says_so(path: str) -> None:
    with serving(Without()) as served:
        whole = served.post(path, ASKED[path])
        assert whole.headers["x-calm-skipped-augmenters"] == "prices-garden"
        assert whole.json()["choices"][0]["calm"] == {"skipped_augmenters": ["prices-garden"]}
        asked = served.post(path, {**ASKED[path], "calm": {"contributions": True}}).json()["choices"][0]["calm"]
        assert asked.keys() == {"contributions", "tokens", "skipped_augmenters"}
        stream = served.post(path, {**ASKED[path], "stream": True})
        assert stream.headers["x-calm-skipped-augmenters"] == "prices-garden"
        pieces = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
        assert pieces[-1]["choices"][0]["calm"]["skipped_augmenters"] == ["prices-garden"]


def test_an_answer_with_all_augmenters_says_nothing_of_it() -> None:
    with serving() as served:
        whole = served.post("/v1/completions", ASKED["/v1/completions"])
        assert "x-calm-skipped-augmenters" not in whole.headers and "calm" not in whole.json()["choices"][0]


@pytest.mark.parametrize(
    ("error", "code"),
    [(AugmenterUnavailableError("gone"), "augmenter_unavailable"), (AugmenterError("wrong"), "augmenter_failed")],
)
def test_an_outage_is_an_error_of_its_own(error: Exception, code: str) -> None:
    client = Failing()
    client.error = error
    with serving(client) as served:
        response = served.post("/v1/completions", ASKED["/v1/completions"])
        assert (response.status_code, response.json()["error"]["code"]) == (503, code)
        assert response.json()["error"]["message"] == str(error)
