"""What watchers see: health, models, tokens, metrics, logs, request ids, CORS."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from prometheus_client.parser import text_string_to_metric_families

from calm_graph.http.auth import KEYS_VARIABLE
from calm_graph.http.logs import log_to, logger
from calm_graph.http.settings import HttpSettings
from tests.http.conftest import HTTP, Served, serving
from tests.http.scripted import ScriptedClient

COMPLETION = {"prompt": "Hello", "max_tokens": 3}


def test_health_and_readiness() -> None:
    client = ScriptedClient()
    with serving(client) as served:
        assert HTTP.get(f"{served.url}/ready").json() == {"status": "ready"}
        client.ready = False
        assert HTTP.get(f"{served.url}/health").status_code == 200
        answer = HTTP.get(f"{served.url}/ready")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_ready"
        metrics = HTTP.get(f"{served.url}/metrics")
        assert metrics.status_code == 200 and 'calm_graph_engine_up{model_name="garden"} 0.0' in metrics.text


def test_versions_and_compositions(served: Served) -> None:
    assert HTTP.get(f"{served.url}/version").json() == {"version": version("calm-graph")}
    (garden,) = HTTP.get(f"{served.url}/v1/compositions").json()["data"]
    assert garden["id"] == "garden" and garden["augmenters"] == ["prices-garden", "prices-kitchen"]
    assert garden["graph"]["nodes"][0] == "arith"


def test_tokens_and_back(served: Served) -> None:
    answer = served.post("/tokenize", {"prompt": "Hello world", "return_token_strs": True}).json()
    ids = served.client.tokenizer("Hello world")["input_ids"]
    assert answer["tokens"] == ids and answer["count"] == len(ids) and answer["max_model_len"] == 192
    assert len(answer["token_strs"]) == len(ids)
    assert served.post("/tokenize", {"prompt": "x"}).json()["token_strs"] is None
    assert served.post("/detokenize", {"tokens": ids}).json() == {"prompt": "Hello world"}
    error = served.post("/tokenize", {"prompt": "x", "massages": []}).json()["error"]
    assert error["code"] == "unknown_parameter"
    long = served.post("/tokenize", {"prompt": "word " * 10_000}).json()  # in a thread
    assert long["tokens"] == served.client.tokenizer("word " * 10_000)["input_ids"]


def values(served: Served) -> dict[tuple[str, ...], float]:
    text = HTTP.get(f"{served.url}/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_and_show_the_engine() -> None:
    with serving() as served, serving() as other:
        served.post("/v1/completions", COMPLETION | {"n": 2})
        served.post("/v1/completions", COMPLETION | {"prompt": "!break", "max_tokens": 9, "stream": True})
        served.post("/v1/completions", COMPLETION | {"model": "no"})
        HTTP.get(f"{served.url}/wp-login.php")
        while (found := values(served)).get(("calm_graph_requests_total", "/v1/completions", "garden", "503")) != 1:
            pass  # a stream is counted after its end has been sent
        requests = "calm_graph_requests_total"
        assert found[requests, "/v1/completions", "garden", "200"] == 1
        assert found[requests, "/v1/completions", "garden", "503"] == 1
        assert found[requests, "/v1/completions", "", "404"] == 1
        assert found[requests, "other", "", "404"] == 1
        assert found["calm_graph_time_to_first_token_seconds_count", "garden"] == 2
        assert found["calm_graph_inter_token_latency_seconds_count", "garden"] == 2 * 2 + 2
        assert found["calm_graph_request_generation_tokens_sum", "garden"] == 2 * 3 + 3
        assert found["calm_graph_num_requests_running", "garden"] == 2
        assert found["calm_graph_batch_size", "garden"] == 3.5
        assert found["calm_graph_cache_usage_ratio", "garden"] == 0.25
        assert found["calm_graph_augmenter_seconds_total", "prices-garden", "garden"] == 1.5
        assert found["calm_graph_augmenter_skipped_tokens_total", "prices-kitchen", "garden"] == 40
        assert found["calm_graph_augmenter_contribution_ratio", "prices-garden", "garden"] == 0.25
        assert (requests, "/v1/completions", "garden", "200") not in values(other)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    before = logger.handlers, logger.level, logger.propagate
    stream = io.StringIO()
    log_to(stream)
    yield stream
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_the_access_log_tells_no_prompt(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "ann:secret")
    headers = {"Authorization": "Bearer secret", "x-request-id": "mine-1"}
    with serving() as served:
        served.post("/v1/completions", COMPLETION | {"prompt": "private thing"}, headers=headers)
        served.post("/v1/completions", COMPLETION | {"prompt": ["private !break"], "max_tokens": 9, "stream": True},
                    headers=headers)  # fmt: skip
        served.post("/v1/completions", COMPLETION)
    assert "private" not in log.getvalue() and "secret" not in log.getvalue()
    # The line of a stream is written after its end has been sent.
    lines = sorted(map(json.loads, log.getvalue().splitlines()), key=lambda line: int(line["status"]))
    whole, refused, broken = lines
    assert (whole["request_id"], whole["key"], whole["model"], whole["status"]) == ("mine-1", "ann", "garden", 200)
    assert whole["num_new_tokens"] == 3 and whole["finish_reasons"] == ["length"] and not whole["stream"]
    assert 0 < whole["first_token_s"] <= whole["duration_s"]
    assert (broken["status"], broken["error"], broken["stream"]) == (503, "service_unavailable", True)
    assert (refused["status"], refused["error"], refused["key"]) == (401, "invalid_api_key", None)


def test_the_access_log_tells_prompts_where_they_are_wanted(log: io.StringIO) -> None:
    with serving(settings=HttpSettings(log_prompts=True)) as served:
        served.post("/v1/completions", COMPLETION | {"prompt": ["one\ntwo", "three"]})
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["prompts"] == ["one\ntwo", "three"]


def test_a_crash_is_logged_with_the_id_that_the_client_has(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = served.post("/v1/completions", COMPLETION | {"prompt": "!crash"})
    assert answer.headers["x-request-id"] in caplog.text and "secret detail" in caplog.text


@pytest.mark.parametrize("came, kept", [("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ("é", False)])
def test_request_ids(served: Served, came: str, kept: bool) -> None:
    answer = HTTP.get(f"{served.url}/health", headers={"x-request-id": came.encode()})
    assert (answer.headers["x-request-id"] == came) == kept
    assert answer.headers["x-request-id"]


def test_web_pages_may_ask_only_from_where_they_are_allowed(served: Served) -> None:
    headers = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in HTTP.options(f"{served.url}/v1/completions", headers=headers).headers
    with serving(settings=HttpSettings(cors_origins=("https://chat.example",))) as allowing:
        answer = HTTP.options(f"{allowing.url}/v1/completions", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        other = HTTP.options(f"{allowing.url}/v1/completions", headers=headers | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
