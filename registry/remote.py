"""A model that runs at its owner's: how its service is asked, and what it says of the model.

What it says is kept on disk, so that a composition which can do without the service starts without it, too.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.card import FACTS, Digest, ModelCard, PositiveInt, RemoteAccess
from registry.errors import FactMismatchError, FingerprintError, RemoteError, RemoteUnavailableError, WeightsError
from registry.fingerprint import tokenizer_fingerprint
from registry.sources import local_path, remote_folder

if TYPE_CHECKING:
    import httpx2 as httpx

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What a service gives of a tokenizer; the second may be missing."""
DEFAULT_KEY_VARIABLE = "CALM_GRAPH_REMOTE_KEY"
"""Where the key of a service is that was named by its address only."""
_FACTS_FILE = "augmenter.json"
_MAX_FACTS_BYTES = 1 << 20
_MAX_TOKENIZER_BYTES = 128 << 20
_MAX_ERROR_BYTES = 1 << 16
_FRESH_S = 60.0
"""For so long what a service said of itself is not asked again."""


class AugmenterFacts(BaseModel):
    """What a service says of the model that it runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(max_length=96)]
    fingerprint: Digest
    tokenizer_fingerprint: Digest
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Layers whose states it gives, ascending."""
    reading: Literal["prompt"] = "prompt"
    max_tokens: PositiveInt
    """Of one request, over all its rows."""
    architecture: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    num_layers: PositiveInt
    hidden_size: PositiveInt
    vocab_size: PositiveInt
    causal: bool
    context_length: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_parameters: PositiveInt | None = None
    num_active_parameters: PositiveInt | None = None
    licence: Annotated[str, Field(max_length=200)] = "unspecified"


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


def remote_card(name: str, url: str) -> ModelCard:
    """Return a card for the service at an address; its key is in CALM_GRAPH_REMOTE_KEY, if that is set.

    Raises:
        RemoteError: It is no address.
    """
    variable = DEFAULT_KEY_VARIABLE if DEFAULT_KEY_VARIABLE in os.environ else None
    try:
        return ModelCard(name=name, source=f"remote:{url}", remote=RemoteAccess(api_key_variable=variable))
    except ValidationError as error:
        raise RemoteError(f"remote {name!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def without_access(card: ModelCard) -> ModelCard:
    """Return a card that came with a checkpoint: whoever made that must not choose whom we send texts and keys to."""
    return card.model_copy(update={"remote": None}) if card.runtime == "remote" else card


def described(card: ModelCard) -> ModelCard:
    """Return the card of a service with what the service says of itself.

    Raises:
        FingerprintError: It runs another model than the card says.
        FactMismatchError: It says other facts than the card.
    """
    if card.remote is None:
        return card
    facts = _facts(service_of(card))
    if card.fingerprint not in (None, facts.fingerprint):
        raise FingerprintError(
            f"card {card.name!r} records {card.fingerprint}, but the service {card.location} runs {facts.fingerprint}; "
            "ask its owner, or correct the card if the new model is meant"
        )
    problems = [
        f"  {fact}: the card says {said!r}, the service {found!r}"
        for fact in FACTS
        if (said := getattr(card, fact)) is not None
        and (found := getattr(facts, fact)) is not None
        and said != found
        and not (fact == "context_length" and said < found)
    ]
    if problems:
        raise FactMismatchError("\n".join([f"card {card.name!r} does not describe {card.location}:", *problems]))
    update: dict[str, Any] = {"fingerprint": facts.fingerprint, "modality": "text"}
    update["remote"] = card.remote.model_copy(update={"layers": facts.layers})
    if card.licence == "unspecified":
        update["licence"] = facts.licence
    return card.with_facts(facts.model_dump()).model_copy(update=update)


def fetch_tokenizer(card: ModelCard) -> Path:
    """Return the folder with the tokenizer of a model that a service runs; asks for it once.

    Raises:
        RemoteError: The service gives none.
        WeightsError: What it gives is not the tokenizer that it says it has.
        OSError: The folder cannot be written.
    """
    if card.remote is None:
        if (kept := local_path(card)) is not None:
            return kept
        service_of(card)  # raises
    service = service_of(card)
    facts = _facts(service)
    folder = remote_folder(card.location, facts.fingerprint)
    if (folder / "config.json").is_file() and tokenizer_fingerprint(folder) == facts.tokenizer_fingerprint:
        return folder
    files = _json(service, service.ask("/v1/tokenizer", max_bytes=_MAX_TOKENIZER_BYTES)).get("files")
    if not isinstance(files, dict) or not all(isinstance(files.get(name, ""), str) for name in TOKENIZER_FILES):
        raise RemoteError(service.said("gives no tokenizer.json"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name in TOKENIZER_FILES:  # and nothing else, whatever it is called
            if name in files:
                (stage / name).write_text(files[name], "utf-8")
        # transformers chooses the tokenizer's class by it.
        (stage / "config.json").write_text(json.dumps({"model_type": facts.architecture}), "utf-8")
        found = tokenizer_fingerprint(stage)
        if found != facts.tokenizer_fingerprint:
            raise WeightsError(service.said(f"says its tokenizer is {facts.tokenizer_fingerprint}, but gave {found}"))
        shutil.rmtree(folder, ignore_errors=True)
        stage.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


_known: dict[str, tuple[float, AugmenterFacts]] = {}


def _facts(service: Service) -> AugmenterFacts:
    """What the service says of itself; after an outage what it said last."""
    known = _known.get(service.url)
    if known is not None and time.monotonic() - known[0] < _FRESH_S:
        return known[1]
    file = remote_folder(service.url, None) / _FACTS_FILE
    try:
        text = service.ask("/v1/augmenter", max_bytes=_MAX_FACTS_BYTES)
    except RemoteUnavailableError as error:
        try:
            facts = AugmenterFacts.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            raise error from None
        logger.warning("%s; going on with what it said of itself before", error)
    else:
        try:
            facts = AugmenterFacts.model_validate(_json(service, text))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise RemoteError(service.said(f"does not describe a model ({where}: {problem['msg']})")) from error
        _keep(file, facts)
    _known[service.url] = (time.monotonic(), facts)
    return facts


def _keep(file: Path, facts: AugmenterFacts) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as stream:
            stream.write(facts.model_dump_json())
        os.replace(stream.name, file)
    except OSError:
        return  # a read-only home is no reason to fail


def _json(service: Service, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RemoteError(service.said("does not answer with a JSON object; is it an augmenter's?"))
    return content


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
