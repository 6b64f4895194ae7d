"""Keys, their names, and how much each may ask at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from calm_graph.errors import DeclarationError
from calm_graph.http.auth import KEYS_VARIABLE, Keys, read_keys
from calm_graph.http.settings import HttpSettings
from tests.http.conftest import Served, serving

COMPLETION = {"prompt": "Hello", "max_tokens": 1}


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# the team's\nann: a:colon key \n\nbob:b\n")
    keys = read_keys(HttpSettings(api_keys_file=file), {KEYS_VARIABLE: "cy:c,\ndi:d"})
    assert [keys.name_of(key) for key in ("a:colon key", "b", "c", "d")] == ["ann", "bob", "cy", "di"]
    assert [keys.name_of(key) for key in ("", "a", "ann", "B", "\udcff")] == [None] * 5
    assert "colon" not in repr(keys)
    assert read_keys(HttpSettings(), {}) == Keys()


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no key"),
        ("# none\n", "has no key"),
        ("ann", ":1: is not `name:key`"),
        ("ann:", ":1: is not `name:key`"),
        ("ann:a\nann:b", ":2: name 'ann' is there already"),
        ("ann:a\nbob:a", ":2: the key of 'bob' is there already"),
    ],
)
def test_bad_key_files_do_not_open_the_server(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(DeclarationError, match=said):
        read_keys(HttpSettings(api_keys_file=file), {})
    with pytest.raises(DeclarationError, match="has no key"):
        read_keys(HttpSettings(), {KEYS_VARIABLE: ""})
    with pytest.raises(DeclarationError, match="cannot be read"):
        read_keys(HttpSettings(api_keys_file=tmp_path / "nothing"), {})


def test_only_health_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "ann:secret")
    with serving() as served:
        for path in ("/health", "/ready"):
            assert httpx.get(f"{served.url}{path}").status_code == 200
        shut = ("/v1/models", "/v1/models/garden", "/v1/compositions", "/metrics", "/version", "/docs",
                "/openapi.json", "/nothing", "/health/", "//health", "/page")  # fmt: skip
        for path in shut:
            answer = httpx.get(f"{served.url}{path}")
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            assert served.post(path, {}).status_code == 401
        assert not served.client.requests
        with pytest.raises(openai.AuthenticationError) as caught:
            served.openai("secre").models.list()
        assert caught.value.code == "invalid_api_key" and "secre" not in caught.value.message
        assert served.openai("secret").models.list().data


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEYS_VARIABLE, "ann:secret")
        with serving() as served:
            yield served


@pytest.mark.parametrize(
    "header, status",
    [
        (b"Bearer secret", 200),
        (b"bearer  secret", 200),
        (b"secret", 401),
        (b"Basic secret", 401),
        (b"Bearer", 401),
        (b"Bearer secret2", 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
def test_the_authorization_header(guarded: Served, header: bytes, status: int) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models", headers={b"Authorization": header})
    assert answer.status_code == status


def test_requests_of_one_key_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "ann:a,bob:b")
    with serving(settings=HttpSettings(max_requests_per_key=1)) as served:

        def ask(key: str, prompt: str = "Hello", number: int = 1) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return served.post("/v1/completions", {"prompt": prompt, "max_tokens": number}, headers=headers)

        slow = threading.Thread(target=ask, args=("a", "!slow", 10))
        slow.start()
        while not served.client.under_way:
            time.sleep(0.005)
        refused = ask("a")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert ask("b").status_code == 200
        assert httpx.get(f"{served.url}/v1/models", headers={"Authorization": "Bearer a"}).status_code == 200
        slow.join()
        assert ask("a").status_code == 200
