"""Random and hostile HTTP requests, as bytes, and a client that sends them as they are."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TEXTS = (
    "7+5=",
    "",
    " ",
    "\x00\x01\x7f",
    "\ufeff\u200b\u202e\u0301",
    "👩‍👩‍👧‍👦" * 3,
    "ﷺ" * 40,
    "\ud800",
    "\ud83d\ude00",
    "<|endoftext|><s></s>",
    "data: [DONE]\n\n",
    "{{ messages }}{% for x in range(10**9) %}{% endfor %}",
    "Ω" * 300,
    "9" * 5000,
    "../../etc/passwd",
    "%s%n%x",
)
_NUMBERS = (
    "1e400",
    "-1e400",
    "1" + "0" * 5000,
    "-0.0",
    "1e-400",
    "9223372036854775808",
    "NaN",
    "Infinity",
    "-Infinity",
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**30, 0.5, -0.0, 1e308, 1e-308, "", "0", "x" * 5000,
    [], [[]], [None], {}, {"": None}, [1, "a", None], [[1], ["a"]], {"a": {"b": {"c": []}}}, [0] * 2000,
    [["x"] * 50] * 50,
)  # fmt: skip
_FIELDS = (
    "model", "prompt", "messages", "n", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p",
    "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "stop",
    "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "stream", "stream_options", "augmenters", "calm",
    "best_of", "echo", "logprobs", "top_logprobs", "add_special_tokens", "add_generation_prompt", "user", "suffix",
    "continue_final_message", "chat_template_kwargs", "tools", "response_format", "__proto__", "\ud800", "a" * 1000,
)  # fmt: skip
_PATHS = (
    "/", "//", "/v1", "/v1/", "/v1/models", "/v1/models/", "/v1/models/%00", "/v1/models/..%2f..%2fetc", "/health",
    "/v1/completions/", "/v1/chat/completions", "/v1/completions", "/v1/compositions", "/tokenize", "/detokenize",
    "/ready", "/metrics", "/version", "/openapi.json", "/docs", "/page/../../etc/passwd", "/page/%2e%2e/x", "/nowhere",
    "/%ff%fe", "/?a=" + "b" * 3000, "/" + "a/" * 4000, "*", "http://other.example/v1/models",
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get")


@dataclass(frozen=True, slots=True)
class Hostile:
    """One request.

    Args:
        kind: For the counts.
        data: What is sent.
        leave_after: Bytes of the answer after which the client goes away; None reads all.
        may_be_silent: Whether it is so broken that the connection may be closed without an answer.
        abrupt: Whether the client goes away with a reset.
    """

    kind: str
    data: bytes
    leave_after: int | None = None
    may_be_silent: bool = False
    abrupt: bool = False


def make(draws: random.Random) -> Hostile:
    """Return a request of a random kind."""
    return draws.choice(_KINDS)(draws)


async def send(host: str, port: int, request: Hostile) -> int:
    """Send a request.

    Args:
        host: Of the server.
        port: Of the server.
        request: What to send.

    Returns:
        The status of HTTP; 0: none came.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request.data)
        await writer.drain()
        if request.leave_after is not None:
            came = b""
            while len(came) < request.leave_after and (piece := await reader.read(request.leave_after)):
                came += piece
            if request.abrupt:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            if request.may_be_silent and writer.can_write_eof():
                writer.write_eof()
            came = await reader.read(64)
            while await reader.read(65536):
                pass
    except OSError:  # the server has closed the connection already
        came = b""
    finally:
        writer.close()
    words = came.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1][:3].isdigit() else 0


def post(path: str, body: bytes, *, headers: str = "", method: str = "POST") -> bytes:
    """Return a request with a body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def _body(draws: random.Random, *, stream: bool | None = None) -> tuple[str, dict[str, Any]]:
    """A request with random sampling that should be answered."""
    chat = draws.random() < 0.4
    text = f"{draws.randrange(99)}+{draws.randrange(99)}="
    fields: dict[str, Any] = {"max_tokens": draws.randrange(1, 12)}
    fields |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    options: dict[str, Callable[[], Any]] = {
        "temperature": lambda: draws.choice([0, 0.1, 1, 2.5, 100]),
        "top_p": lambda: draws.choice([1e-9, 0.1, 0.9, 1]),
        "top_k": lambda: draws.choice([-1, 0, 1, 50, 2**31]),
        "min_p": lambda: draws.choice([0, 0.05, 1]),
        "repetition_penalty": lambda: draws.choice([1e-3, 1, 1.2, 100]),
        "presence_penalty": lambda: draws.uniform(-2, 2),
        "frequency_penalty": lambda: draws.uniform(-2, 2),
        "logit_bias": lambda: {str(draws.randrange(30)): draws.uniform(-100, 100) for _ in range(draws.randrange(4))},
        "seed": lambda: draws.choice([0, -1, 2**62, -(2**62)]),
        "stop": lambda: draws.choice(["1", ["2", "3"], [], ["é", "\u0000"]]),
        "stop_token_ids": lambda: [draws.randrange(30)],
        "ignore_eos": lambda: True,
        "include_stop_str_in_output": lambda: True,
        "n": lambda: draws.randrange(1, 5),
        "calm": lambda: {"contributions": True},
        "logprobs": lambda: True if chat else draws.randrange(6),
        "min_tokens": lambda: draws.randrange(3),
    }
    for name in draws.sample(sorted(options), draws.randrange(6)):
        fields[name] = options[name]()
    if draws.random() < 0.4 if stream is None else stream:
        fields["stream"] = True
    return ("/v1/chat/completions" if chat else "/v1/completions"), fields


def _valid(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    return Hostile("valid", post(path, json.dumps(fields).encode()))


def _odd_text(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    text = draws.choice(_TEXTS) + draws.choice(_TEXTS)
    if "prompt" in fields:
        ids = [draws.randrange(-2, 40) for _ in range(draws.randrange(5))]
        fields["prompt"] = draws.choice([text, [text, "1+1="], ids, [ids, [1]]])
    else:
        fields["messages"] = [{"role": draws.choice(["user", "system", "tool", text]), "content": text}]
    return Hostile(
        "odd text", post(path, json.dumps(fields, ensure_ascii=draws.random() < 0.5).encode(errors="surrogatepass"))
    )


def _nearly_right(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    for _ in range(draws.randrange(1, 4)):
        fields[draws.choice(_FIELDS)] = draws.choice(_VALUES)
    return Hostile("nearly right", post(path, json.dumps(fields).encode()))


def _huge_number(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    name = draws.choice(_FIELDS[3:21])
    fields[name] = "@"
    return Hostile("huge number", post(path, json.dumps(fields).replace('"@"', draws.choice(_NUMBERS)).encode()))


def _nested(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    depth = draws.choice([50, 500, 5_000, 100_000])
    left, right = draws.choice([("[", "]"), ('{"a":', "}")])
    value = left * depth + ("1" + right * depth if draws.random() < 0.7 else "")
    if draws.random() < 0.3:
        return Hostile("nested", post(path, value.encode()))
    fields[draws.choice(_FIELDS)] = "@"
    return Hostile("nested", post(path, json.dumps(fields).replace('"@"', value).encode()))


def _not_json(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    body = bytearray(json.dumps(fields).encode())
    way = draws.randrange(5)
    if way == 0:
        body = body[: draws.randrange(len(body))]
    elif way == 1:
        for _ in range(draws.randrange(1, 6)):
            body[draws.randrange(len(body))] = draws.randrange(256)
    elif way == 2:
        body = bytearray(draws.randbytes(draws.randrange(2000)))
    elif way == 3:
        body = bytearray(b"\xef\xbb\xbf") + body
    else:
        body = bytearray(b"{" + b'"prompt":"1",' * draws.randrange(1, 300) + body[1:])
    return Hostile("not quite JSON", post(path, bytes(body)))


def _elsewhere(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    way = draws.randrange(3)
    if way == 0:
        return Hostile("elsewhere", post(draws.choice(_PATHS), json.dumps(fields).encode()), may_be_silent=True)
    if way == 1:
        data = post(path, json.dumps(fields).encode(), method=draws.choice(_METHODS))
        return Hostile("elsewhere", data, may_be_silent=True)
    head = f"{draws.choice(_METHODS)} {draws.choice(_PATHS)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    return Hostile("elsewhere", head.encode(), may_be_silent=True)


def _tokens(draws: random.Random) -> Hostile:
    path = draws.choice(["/tokenize", "/detokenize"])
    fields: dict[str, Any] = {"prompt": draws.choice(_TEXTS)} if path == "/tokenize" else {"tokens": [1, 2, 3]}
    if draws.random() < 0.5:
        fields[draws.choice([*_FIELDS, "tokens"])] = draws.choice(_VALUES)
    return Hostile("tokens", post(path, json.dumps(fields).encode()))


def _leaves(draws: random.Random) -> Hostile:
    path, fields = _body(draws, stream=draws.random() < 0.8)
    fields |= {"max_tokens": 80, "min_tokens": 80, "n": draws.randrange(1, 3)}
    after = draws.choice([0, 1, 200, 2000])
    return Hostile("leaves", post(path, json.dumps(fields).encode()), leave_after=after, abrupt=draws.random() < 0.5)


def _broken_http(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    body = json.dumps(fields).encode()
    whole = post(path, body)
    start = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    data = draws.choice(
        [
            whole[: draws.randrange(1, len(whole))],
            start + b"Content-Length: -1\r\n\r\n" + body,
            start + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
            start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
            start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
            start + b"X-A: " + b"b" * 200_000 + b"\r\n\r\n",
            start + b"X-A: b\r\n" * 5_000 + b"\r\n",
            start + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 4\r\n\r\n--x-",
            start + b"Authorization: Bearer \xff\xfe\r\nx-request-id: \xff\r\nContent-Length: 2\r\n\r\n{}",
            draws.randbytes(300),
            b"\r\n" * 100,
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )
    return Hostile("broken HTTP", data, may_be_silent=True)


def _large(draws: random.Random) -> Hostile:
    path, fields = _body(draws)
    if "prompt" in fields:
        fields["prompt"] = draws.choice(["1", "+ ", "Ω"]) * draws.choice([1_000, 100_000, 1_500_000])
    else:
        fields["messages"] = [{"role": "user", "content": "1"}] * draws.choice([100, 10_000])
    return Hostile("large", post(path, json.dumps(fields).encode()), may_be_silent=True)


# Some more often than others: large ones take longest.
_KINDS = (
    *(_valid, _odd_text, _nearly_right, _huge_number, _not_json, _elsewhere, _tokens, _leaves, _broken_http) * 4,
    *(_nested,) * 2,
    _large,
)
