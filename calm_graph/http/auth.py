"""Who may ask: API keys with names, and how many requests of each may be under way together."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from calm_graph.errors import DeclarationError, Problem
from calm_graph.http.errors import ApiError
from calm_graph.http.record import RequestRecord
from calm_graph.http.settings import HttpSettings

KEYS_VARIABLE = "CALM_GRAPH_API_KEYS"
# What tells nothing and costs nothing, and the playground's page, which asks for the key itself.
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = "/page/"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that may ask; of each only its digest is kept, so that none is printed by accident.

    Args:
        digests: Name -> sha256 of the key.
    """

    digests: Mapping[str, bytes] = field(default_factory=dict)

    def name_of(self, key: str) -> str | None:
        """Return the name of a key, in a time that does not tell how much of it is right; None is no key of ours."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self.digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def read_keys(settings: HttpSettings, environment: Mapping[str, str] = os.environ) -> Keys:
    """Return the keys of the file and of the environment.

    Args:
        settings: Names the file.
        environment: May have CALM_GRAPH_API_KEYS.

    Returns:
        The keys; none if neither is given.

    Raises:
        DeclarationError: The file cannot be read, or a line has no name or no key, or one that another line has.
    """
    sources: list[tuple[str, str]] = []
    if settings.api_keys_file is not None:
        try:
            sources.append((str(settings.api_keys_file), settings.api_keys_file.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise DeclarationError([Problem("api_keys_file", f"cannot be read: {error}")], where="settings") from None
    if KEYS_VARIABLE in environment:
        sources.append((KEYS_VARIABLE, environment[KEYS_VARIABLE].replace(",", "\n")))
    digests: dict[str, bytes] = {}
    problems = []
    for where, text in sources:
        num_before = len(digests)
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            name, _, key = (part.strip() for part in entry.partition(":"))
            digest = hashlib.sha256(key.encode()).digest()
            if not name or not key:
                problems.append(Problem(f"{where}:{number}", "is not `name:key`"))
            elif name in digests:
                problems.append(Problem(f"{where}:{number}", f"name {name!r} is there already"))
            elif digest in digests.values():
                problems.append(Problem(f"{where}:{number}", f"the key of {name!r} is there already"))
            else:
                digests[name] = digest
        if len(digests) == num_before and not problems:
            # An empty file must not open the server to everybody.
            problems.append(Problem(where, "has no key; at least one line `name:key` is needed"))
    if problems:
        raise DeclarationError(problems, where="API keys")
    return Keys(digests)


class Doorkeeper:
    """Middleware: no key, no answer; too many requests of one key, not now.

    Args:
        app: What answers.
        keys: Those that may ask; without any, everybody may.
        max_requests_per_key: Requests with a body that may be under way together; None does not count them.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, max_requests_per_key: int | None) -> None:
        self._app = app
        self._keys = keys
        self._limit = max_requests_per_key
        self._under_way: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["calm_graph.record"]
        error = None
        if self._keys.digests:
            record.key_name = self._keys.name_of(_bearer(scope))
            if record.key_name is None:
                error = ApiError(
                    401,
                    "no or wrong API key; send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        name, counted = record.key_name, self._limit is not None and scope["method"] == "POST"
        if error is None and counted and self._limit is not None and self._under_way[name] >= self._limit:
            error = ApiError(
                429,
                f"{self._limit} requests of this API key are under way, which is the most that may be",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        if error is not None:
            record.error_code = error.code
            await error.response()(scope, receive, send)
            return
        self._under_way[name] += counted
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[name] -= counted


def _is_open(scope: Scope) -> bool:
    """Whether everybody may ask; the prefix that the app is mounted at does not count."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _bearer(scope: Scope) -> str:
    """Return the key that came; "" is none."""
    for header, value in scope["headers"]:
        if header == b"authorization":
            found = re.fullmatch(r"bearer +(\S.*)", value.decode("utf-8", "surrogateescape").strip(), re.IGNORECASE)
            return found.group(1) if found else ""
    return ""
