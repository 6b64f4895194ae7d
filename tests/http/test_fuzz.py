"""Whatever comes, the answer is no 5xx: by the OpenAPI schema, and by requests that are nearly right."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from calm_graph.http.app import make_app
from calm_graph.http.fields import HARMLESS, UNSUPPORTED
from calm_graph.http.protocol import ChatBody, CompletionBody
from tests.http.conftest import HTTP, Served
from tests.http.scripted import ScriptedClient

QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(ScriptedClient()))
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@schema.parametrize()
@QUICK
def test_requests_by_the_schema(case: Any) -> None:
    answer = case.call()
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["error"]["code"], str)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**31, 2**63, -(2**64), 1e308, -0.0, "\x00", "!", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *HARMLESS, *UNSUPPORTED})


@settings(QUICK, max_examples=600)
@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    change=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=4),
)
def test_requests_that_are_nearly_right(shared_server: Served, path: str, change: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/tokenize": {"prompt": "x"},
        "/detokenize": {"tokens": [1]},
    }[path]
    body = json.dumps({**right, "max_tokens": 2, **change} if path.startswith("/v1") else {**right, **change})
    headers = {"content-type": "application/json"}
    answer = HTTP.post(f"{shared_server.url}{path}", content=body, headers=headers)
    assert answer.status_code in (200, 400, 404), answer.text
    assert not shared_server.client.under_way
