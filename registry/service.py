"""How the service that runs a model is asked: over HTTP, within a time, again after an outage, with a key."""

from __future__ import annotations

import atexit
import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.card import ModelCard, RemoteAccess
from registry.errors import RemoteError, RemoteUnavailableError

if TYPE_CHECKING:
    import httpx2 as httpx

_MAX_ERROR_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as a card names it.

    Args:
        name: The card's, for errors.
        url: Without a slash at its end.
        access: Key, time and tries.
    """

    name: str
    url: str
    access: RemoteAccess

    def ask(self, path: str, *, body: bytes | None = None, max_bytes: int) -> bytes:
        """Ask, and ask again after an outage, within the time.

        Args:
            path: Of the route.
            body: JSON, to post; None only gets.
            max_bytes: More than this is no answer.

        Returns:
            The body of the answer.

        Raises:
            RemoteError: It refuses, or answers something else.
            RemoteUnavailableError: It does not answer.
        """
        deadline = time.monotonic() + self.access.timeout_s
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json", **self._authorization()}
        attempt = 0
        while True:
            try:
                return self._try(path, body, headers, max_bytes, deadline)
            except RemoteUnavailableError as error:
                wait_s = max(0.1 * 2**attempt, error.retry_after_s)
                if attempt == self.access.num_retries or time.monotonic() + wait_s >= deadline:
                    raise
                time.sleep(wait_s)
                attempt += 1

    def ask_object(self, path: str, *, max_bytes: int) -> dict[str, Any]:
        """Get a JSON object.

        Args:
            path: Of the route.
            max_bytes: More than this is no answer.

        Raises:
            RemoteError: It refuses, or answers something else.
            RemoteUnavailableError: It does not answer.
        """
        try:
            content = json.loads(self.ask(path, max_bytes=max_bytes))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise RemoteError(self.said("does not answer with a JSON object; is it an augmenter's?"))
        return content

    def _try(self, path: str, body: bytes | None, headers: dict[str, str], max_bytes: int, deadline: float) -> bytes:
        import httpx2 as httpx

        late = f"did not answer within {self.access.timeout_s:g} s"
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise RemoteUnavailableError(self.said(late))
        try:
            with _client(os.getpid()).stream(
                "GET" if body is None else "POST", self.url + path, content=body, headers=headers, timeout=left_s
            ) as response:
                is_answer = response.status_code == 200
                found = bytearray()
                for chunk in response.iter_raw():
                    found += chunk
                    if len(found) > (max_bytes if is_answer else _MAX_ERROR_BYTES):
                        raise RemoteError(self.said(f"sent more than the {max_bytes} bytes that the answer may have"))
                    if time.monotonic() > deadline:  # each piece came in time, but all of them did not
                        raise RemoteUnavailableError(self.said(late))
                if not is_answer:
                    raise self._refusal(response, bytes(found))
                return bytes(found)
        except httpx.TimeoutException as error:
            raise RemoteUnavailableError(self.said(late)) from error
        except (httpx.TransportError, OSError) as error:
            raise RemoteUnavailableError(
                self.said(f"cannot be reached ({str(error) or type(error).__name__})")
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteError(self.said(f"cannot be asked ({error})")) from error

    def _refusal(self, response: httpx.Response, body: bytes) -> RemoteError:
        status = response.status_code
        reason = _reason(body)
        if status in (401, 403):
            where = " or ".join(
                [
                    *([f"the variable {self.access.api_key_variable}"] if self.access.api_key_variable else []),
                    *([f"the file {self.access.api_key_file}"] if self.access.api_key_file else []),
                ]
            )
            advice = f"look at {where}" if where else "the card names none; set api_key_variable or api_key_file"
            return RemoteError(self.said(f"does not accept the API key ({status}); {advice}"))
        if status in (404, 405, 410):  # what a proxy says when the service behind it is gone
            return RemoteUnavailableError(self.said(f"is not there ({status}: {reason}); is the address right?"))
        if status in (408, 429) or status >= 500:
            after = response.headers.get("retry-after", "")
            wait_s = float(after) if after.isdecimal() and len(after) < 5 else 0.0
            return RemoteUnavailableError(self.said(f"cannot answer now ({status}: {reason})"), retry_after_s=wait_s)
        return RemoteError(self.said(f"refuses the request ({status}: {reason})"))

    def _authorization(self) -> dict[str, str]:
        access = self.access
        if access.api_key_variable is not None:
            key, where = os.environ.get(access.api_key_variable, ""), f"the variable {access.api_key_variable}"
        elif access.api_key_file is not None:
            where = f"the file {access.api_key_file}"
            try:
                key = Path(access.api_key_file).expanduser().read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise RemoteError(self.said(f"has its API key in {where}, which cannot be read ({error})")) from None
        else:
            return {}
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise RemoteError(self.said(f"has its API key in {where}, where there is none; put it there"))
        return {"Authorization": f"Bearer {key}"}

    def said(self, what: str) -> str:
        """Return an error's text: who did what."""
        return f"augmenter {self.name!r}: the service {self.url} {what}"


def service_of(card: ModelCard) -> Service:
    """Return the service that a card names.

    Raises:
        RemoteError: The card came with a checkpoint, so nobody here said that the service may be asked.
    """
    if card.remote is None:
        raise RemoteError(
            f"augmenter {card.name!r}: its card names the service {card.location}, but came with a checkpoint, and "
            f"what users write is sent to a service only if somebody here says so: remotes={{{card.name!r}: "
            f"{card.location!r}}}, --remote {card.name}={card.location}, or a card in the registry"
        )
    return Service(card.name, card.location.rstrip("/"), card.remote)


def _reason(body: bytes) -> str:
    """What an error object says, in one short line: it comes from somebody else."""
    try:
        said = str(json.loads(body)["error"]["message"])
    except (ValueError, RecursionError, KeyError, TypeError):
        said = "no reason given"
    return "".join(char if char.isprintable() else " " for char in said[:300])


@lru_cache(maxsize=1)
def _client(process: int) -> httpx.Client:
    """One pool of connections for a process; a forked one must not share its parent's."""
    import httpx2 as httpx

    client = httpx.Client(follow_redirects=False, limits=httpx.Limits(max_connections=None))
    atexit.register(client.close)
    return client
