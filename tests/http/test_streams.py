"""The bytes of a stream, and what happens to an answer whose client is gone."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable

import pytest

from tests.http.conftest import Served, serving
from tests.http.scripted import ScriptedClient

COMPLETION = {"model": "garden", "prompt": "Hello", "max_tokens": 2}


def events(text: str) -> list[str]:
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_the_events_of_a_completion(served: Served) -> None:
    answer = served.post("/v1/completions", COMPLETION | {"stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache" and "content-length" not in answer.headers
    *pieces, done = events(answer.text)
    assert done == "[DONE]"
    common = json.loads(pieces[0])
    head = {key: common[key] for key in ("id", "object", "created", "model")}
    assert head["object"] == "text_completion" and head["model"] == "garden"
    assert [json.loads(piece) for piece in pieces] == [
        head | {"choices": [{"index": 0, "text": "0 ", "logprobs": None, "finish_reason": None}], "usage": None},
        head | {"choices": [{"index": 0, "text": "1 ", "logprobs": None, "finish_reason": "length"}], "usage": None},
        head | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
    ]  # fmt: skip


def test_the_events_of_a_chat(served: Served) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 1, "stream": True}
    *pieces, done = events(served.post("/v1/chat/completions", body).text)
    assert done == "[DONE]"
    assert [json.loads(piece)["choices"] for piece in pieces] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "0 "}, "logprobs": None, "finish_reason": "length"}],
    ]
    assert all("usage" not in json.loads(piece) for piece in pieces)


def test_a_broken_stream_ends_with_its_error(served: Served) -> None:
    *pieces, error = events(served.post("/v1/completions", COMPLETION | {"prompt": "!break", "max_tokens": 9,
                                                                         "stream": True}).text)  # fmt: skip
    assert len(pieces) == 3
    assert json.loads(error) == {
        "error": {
            "message": "the replica is gone",
            "type": "server_error",
            "param": None,
            "code": "service_unavailable",
        }
    }


def test_text_that_is_not_final_is_not_sent(served: Served) -> None:
    body = COMPLETION | {"prompt": "!accent", "max_tokens": 4, "stream": True}
    *pieces, _ = events(served.post("/v1/completions", body).text)
    assert [json.loads(piece)["choices"][0]["text"] for piece in pieces] == ["é ", "é "]


def wait_until(condition: Callable[[], bool], *, within_s: float) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("prompt", ["!slow", ["!slow", "!slow"], "!hang"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_when_its_client_is_gone(served: Served, prompt: str | list[str], stream: bool) -> None:
    body = json.dumps(COMPLETION | {"prompt": prompt, "max_tokens": 150, "stream": stream})
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=10)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    if stream and prompt != "!hang":
        assert connection.getresponse().readline().startswith(b"data: ")
    wait_until(lambda: len(served.client.under_way) == (2 if isinstance(prompt, list) else 1), within_s=10)
    connection.close()
    # The scripted engine would go on for 7.5 s, or for ever.
    wait_until(lambda: not served.client.under_way, within_s=3)


def test_a_failed_prompt_ends_its_siblings(served: Served) -> None:
    answer = served.post("/v1/completions", COMPLETION | {"prompt": ["!hang", "!lost"]})
    assert answer.status_code == 503 and not served.client.under_way


def test_without_a_template_the_last_message_of_the_user_is_the_prompt() -> None:
    with serving(ScriptedClient(has_template=False)) as served:
        messages = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "2 +"}, {"type": "text", "text": "3"}]},
        ]
        assert served.post("/v1/chat/completions", {"messages": messages}).status_code == 200
        (request,) = served.client.requests
        assert request.prompt_text == served.client.tokenizer.decode(list(request.prompt_ids)) == "2 +\n3"
        answer = served.post("/v1/chat/completions", {"messages": messages[:1]})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"


def test_how_messages_are_written(served: Served) -> None:
    messages = [{"role": "developer", "content": "d"}, {"role": "assistant", "content": "Once upon"}]
    for further, written in (
        ({}, "<system>d\n<assistant>Once upon\n<assistant>"),
        ({"add_generation_prompt": False}, "<system>d\n<assistant>Once upon\n"),
        ({"continue_final_message": True}, "<system>d\n<assistant>Once upon"),
        ({"chat_template_kwargs": {"shout": True}}, "<system>d\n<assistant>Once upon\n!<assistant>"),
    ):
        served.client.requests.clear()
        assert served.post("/v1/chat/completions", {"messages": messages, **further}).status_code == 200
        (request,) = served.client.requests
        assert served.client.tokenizer.decode(list(request.prompt_ids)) == written
        body = {"messages": messages, **further}
        assert served.post("/tokenize", body).json()["tokens"] == list(request.prompt_ids)
