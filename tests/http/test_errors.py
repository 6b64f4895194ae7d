"""Every mistake is an OpenAI error object with a string code and the field it is about."""

from __future__ import annotations

import socket
from typing import Any

import httpx2 as httpx
import pytest

from calm_graph.http.settings import HttpSettings
from tests.http.conftest import HTTP, Served, serving
from tests.http.scripted import ScriptedClient

COMPLETION = {"model": "garden", "prompt": "Hello"}
CHAT = {"model": "garden", "messages": [{"role": "user", "content": "Hello"}]}


def check(answer: httpx.Response, status: int, code: str, param: str | None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    return str(error["message"])


UNSUPPORTED = {
    "tools": [{"type": "function"}],
    "tool_choice": "required",
    "functions": [{}],
    "response_format": {"type": "json_object"},
    "audio": {},
    "modalities": ["text", "audio"],
    "prompt_logprobs": 1,
    "suffix": "x",
    "use_beam_search": True,
    "skip_special_tokens": False,
    "guided_json": {},
    "logits_processors": ["x"],
}


@pytest.mark.parametrize("path, body", [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(served: Served, path: str, body: Any, name: str) -> None:
    answer = served.post(path, body | {name: UNSUPPORTED[name]})
    message = check(answer, 400, "unsupported_parameter", name)
    assert message.startswith(f"{name}: this server does not support it; leave it out or send null")


def test_neutral_values_and_harmless_fields_are_accepted(served: Served) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "use_beam_search": False,
        "best_of": 1,
        "audio": None,
        "temperature": None,
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
    }
    assert served.post("/v1/chat/completions", CHAT | neutral).status_code == 200
    assert served.client.requests[0].sampling.temperature == 1.0


LONG = "word " * 400
MISTAKES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("c", {"temprature": 1}, "unknown_parameter", "temprature", "did you mean 'temperature'"),
    ("c", {"stream_options": {"include_usge": True}, "stream": True}, "unknown_parameter",
     "stream_options.include_usge", "include_usage"),
    ("c", {"calm": {"contribution": True}}, "unknown_parameter", "calm.contribution", "contributions"),
    ("c", {"augmenters": {"prices-gardn": 1}}, "unknown_augmenter", "augmenters", "nearest: 'prices-garden'"),
    ("c", {"augmenters": {"prices-garden": "off"}}, "invalid_type", "augmenters.prices-garden", "number"),
    ("c", {"best_of": 2}, "unsupported_parameter", "best_of", "only the value of n"),
    ("c", {"stream_options": {}}, "invalid_value", "stream_options", "only with stream"),
    ("c", {"temperature": "0.5"}, "invalid_type", "temperature", "number"),
    ("c", {"temperature": -1}, "invalid_value", "temperature", "greater than or equal to 0"),
    ("c", {"n": 0}, "invalid_value", "n", "greater"),
    ("c", {"n": 129}, "invalid_value", "n", "129 choices are asked for, but this server allows 128"),
    ("c", {"prompt": ["x"] * 65, "n": 2}, "invalid_value", "prompt", "130 choices"),
    ("c", {"max_tokens": True}, "invalid_type", "max_tokens", "integer"),
    ("c", {"max_tokens": 10**30}, "invalid_value", "max_tokens", "less than"),
    ("c", {"min_tokens": 17}, "invalid_value", "min_tokens", "at most 16 tokens"),
    ("c", {"logprobs": 21}, "invalid_value", "logprobs", "20"),
    ("c", {"stop": [""]}, "invalid_type", "stop", "none of them empty"),
    ("c", {"logit_bias": {"x": 1}}, "invalid_value", "logit_bias.x.[key]", "pattern"),
    ("c", {"logit_bias": {"99999": 1}}, "invalid_value", "logit_bias", "got token 99999, but tokens are 0.."),
    ("c", {"stop_token_ids": [99999]}, "invalid_value", "stop_token_ids", "99999"),
    ("c", {"prompt": [[99999]]}, "invalid_value", "prompt", "99999"),
    ("c", {"prompt": ""}, "invalid_value", "prompt", "at least one is needed"),
    ("c", {"prompt": []}, "invalid_type", "prompt", "a list of token ids"),
    ("c", {"prompt": {"a": 1}}, "invalid_type", "prompt", "a list of token ids"),
    ("c", {"prompt": None}, "missing_required_parameter", "prompt", "is missing"),
    ("c", {"prompt": LONG}, "context_length_exceeded", "prompt", "but the context of 'garden' is 192 tokens"),
    ("c", {"max_tokens": 192}, "context_length_exceeded", "prompt", "and 192 new ones are asked for"),
    ("m", {"messages": []}, "invalid_value", "messages", "at least 1"),
    ("m", {"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role", "'assistant'"),
    ("m", {"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content", "missing"),
    ("m", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_parameter",
     "messages[0].content", "part 0"),
    ("m", {"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "unsupported_parameter",
     "messages[0].name", "does not support"),
    ("m", {"top_logprobs": 2}, "invalid_value", "top_logprobs", "only with logprobs"),
    ("m", {"echo": True}, "unsupported_parameter", "echo", "does not support"),
    ("m", {"chat_template_kwargs": {"shuot": 1}}, "invalid_value", "chat_template_kwargs", "did you mean 'shout'"),
    ("m", {"chat_template_kwargs": {"chat_template": "x"}}, "invalid_value", "chat_template_kwargs", "does not read"),
    ("m", {"continue_final_message": True}, "invalid_value", "continue_final_message", "assistant's"),
    ("m", {"messages": [{"role": "user", "content": LONG}]}, "context_length_exceeded", "messages", "192"),
]  # fmt: skip


@pytest.mark.parametrize("kind, change, code, param, said", MISTAKES)
def test_mistakes_are_explained(
    served: Served, kind: str, change: dict[str, Any], code: str, param: str, said: str
) -> None:
    path, body = ("/v1/completions", COMPLETION) if kind == "c" else ("/v1/chat/completions", CHAT)
    message = check(served.post(path, {**body, **change}), 400, code, param)
    assert message.startswith(f"{param}: ") and said in message
    assert not served.client.requests


def test_unknown_things(served: Served) -> None:
    assert "'garden'" in check(
        served.post("/v1/completions", COMPLETION | {"model": "gpt-4"}), 404, "model_not_found", "model"
    )
    check(HTTP.get(f"{served.url}/v1/nothing"), 404, "not_found", None)
    answer = HTTP.get(f"{served.url}/v1/completions")
    check(answer, 405, "method_not_allowed", None)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"model": "garden", "prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"metadata": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b', "prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "x", "seed": 1e400}',
        b'{"prompt": "x", "logit_bias": {"\xc2\xb2": 1}}',
        b'{"prompt": "x", "\\ud800": 1}',
        b'{"prompt": "\\ud83d x", "messages": [{"role": "user", "content": "\\uDE00"}]}',
        b'{"prompt": "x", "model": "\\ud800"}',
        b"[1]",
        b'"text"',
        b"null",
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_hostile_bodies_are_the_client_s_mistake(served: Served, path: str, content: bytes) -> None:
    answer = HTTP.post(f"{served.url}{path}", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"]["code"], str)


def test_surrogate_pairs_are_text(served: Served) -> None:
    answer = HTTP.post(
        f"{served.url}/tokenize", content=b'{"prompt": "\\ud83d\\uDE00"}', headers={"content-type": "application/json"}
    )
    tokens = answer.json()["tokens"]
    assert served.post("/detokenize", {"tokens": tokens}).json() == {"prompt": "\U0001f600"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "\xed\xa0\x80"}',  # half a pair, as no encoder of UTF-8 writes it
        '{"prompt": "\ud800"}'.encode("utf-16-le", "surrogatepass"),
        '{"prompt": "x"}'.encode("utf-32"),
        b'{"prompt": "\xff"}',
    ],
)
def test_a_body_that_is_no_utf_8(served: Served, body: bytes) -> None:
    answer = HTTP.post(f"{served.url}/v1/completions", content=body, headers={"content-type": "application/json"})
    check(answer, 400, "invalid_json", None)


def test_a_body_that_is_no_json_is_told_what_to_send(served: Served) -> None:
    answer = HTTP.post(f"{served.url}/v1/completions", content=b'{"prompt": "x"}')
    assert "Content-Type: application/json" in check(answer, 400, "invalid_type", None)


def test_limits_of_the_settings() -> None:
    settings = HttpSettings(max_body_bytes=1000, max_prompt_tokens=5, max_new_tokens=7, max_choices=2)
    with serving(settings=settings) as served:
        long = COMPLETION | {"prompt": "x" * 1000}
        check(served.post("/v1/completions", long), 413, "request_too_large", None)
        chunks = iter([b'{"prompt": "', b"x" * 2000, b'"}'])  # no length is announced
        answer = HTTP.post(f"{served.url}/v1/completions", content=chunks)
        check(answer, 413, "request_too_large", None)
        many = COMPLETION | {"prompt": [1, 2, 3, 4, 5, 6]}
        check(served.post("/v1/completions", many), 400, "context_length_exceeded", "prompt")
        check(served.post("/v1/completions", COMPLETION | {"max_tokens": 8}), 400, "invalid_value", "max_tokens")
        check(served.post("/v1/completions", COMPLETION | {"n": 3}), 400, "invalid_value", "n")
        answer = served.post("/v1/completions", COMPLETION)  # the default of 16 is cut to what is allowed
        assert answer.json()["usage"]["completion_tokens"] == 7


def test_an_announced_body_is_refused_before_it_comes(served: Served) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_given_up(stream: bool) -> None:
    with serving(settings=HttpSettings(request_timeout_s=0.3)) as served:
        answer = served.post("/v1/completions", COMPLETION | {"prompt": ["!hang", "!hang"], "stream": stream})
        check(answer, 408, "request_timeout", None)
        assert not served.client.under_way
        slow = served.post("/v1/completions", COMPLETION | {"prompt": "!slow", "max_tokens": 100, "stream": stream})
        assert slow.status_code == (200 if stream else 408) and '"code": "request_timeout"' in slow.text
        assert not served.client.under_way


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_fits_into_no_context_is_not_even_tokenised(
    served: Served, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[int]:
        raise AssertionError("tokenised")

    monkeypatch.setattr("calm_graph.http.tokenise.prompt_ids", fail)
    text = "so " * 300_000
    messages = [{"role": "user", "content": text}]
    body = {"model": "garden", **({"messages": messages} if "chat" in path else {"prompt": text})}
    answer = served.post(path, body)
    check(answer, 400, "context_length_exceeded", "messages" if "chat" in path else "prompt")
    assert "900000 characters" in answer.text


def test_without_room_a_request_is_refused_before_its_body_is_read() -> None:
    with serving(ScriptedClient(has_room=False)) as served:
        for path in ("/v1/completions", "/v1/chat/completions"):
            answer = HTTP.post(f"{served.url}{path}", content=b"this is no JSON", headers={"x-request-id": "mine"})
            assert "no room" in check(answer, 429, "overloaded", None)
            assert answer.headers["retry-after"] == "3" and answer.headers["x-request-id"] == "mine"
        # What takes no room is answered, and what was refused is counted at its endpoint.
        assert served.post("/tokenize", {"model": "garden", "prompt": "a"}).status_code == 200
        counted = 'calm_graph_requests_total{endpoint="/v1/completions",model_name="",status="429"} 1.0'
        assert counted in HTTP.get(f"{served.url}/metrics").text
        assert not served.client.requests
