"""A model that runs at its owner's: what its service says of it, as a card and a tokenizer.

What it says is kept on disk, so that a composition which can do without the service starts without it, too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.card import FACTS, Digest, ModelCard, PositiveInt, RemoteAccess
from registry.errors import FactMismatchError, FingerprintError, RemoteError, RemoteUnavailableError, WeightsError
from registry.fingerprint import tokenizer_fingerprint
from registry.service import Service, service_of
from registry.sources import local_path, remote_folder

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What a service gives of a tokenizer; the second may be missing."""
DEFAULT_KEY_VARIABLE = "CALM_GRAPH_REMOTE_KEY"
"""Where the key of a service is that was named by its address only."""
_FACTS_FILE = "augmenter.json"
_MAX_FACTS_BYTES = 1 << 20
_MAX_TOKENIZER_BYTES = 128 << 20
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
    files = service.ask_object("/v1/tokenizer", max_bytes=_MAX_TOKENIZER_BYTES).get("files")
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
        said = service.ask_object("/v1/augmenter", max_bytes=_MAX_FACTS_BYTES)
    except RemoteUnavailableError as error:
        try:
            facts = AugmenterFacts.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            raise error from None
        logger.warning("%s; going on with what it said of itself before", error)
    else:
        try:
            facts = AugmenterFacts.model_validate(said)
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
