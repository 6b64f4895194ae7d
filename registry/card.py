"""The card: what is known about one frozen model without opening its weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

SCHEMES = ("hub", "folder", "gguf", "embedded", "remote")

PositiveInt = Annotated[int, Field(gt=0)]

FACTS = (
    "architecture",
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_parameters",
    "vocab_size",
    "context_length",
    "causal",
)
"""Fields that the registry fills from the model's own files where a card leaves them None."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class OnnxExport(BaseModel):
    """The graph behind a card of `runtime: onnx`, and how far its states are from those of the model it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    """Name of the card that was exported; its fingerprint is the `fingerprint` of the export's card."""
    layers: tuple[int, ...]
    """Layers whose states the graph returns, ascending; it stops at the last."""
    reading: Literal["prompt", "stream"]
    """`stream`: keys and values go in and out, so it may be run step by step."""
    precision: Literal["fp32", "fp16", "int8", "int4"]
    opset: PositiveInt
    files: Mapping[str, Digest]
    """The graph and its external data: file name -> digest."""
    size_bytes: PositiveInt
    replaces_bytes: PositiveInt
    """Of the same blocks and embeddings in float32."""
    cosine: Mapping[int, float]
    """Layer -> mean cosine with torch's states, over the texts that every export is tried on."""
    relative_error: Mapping[int, float]
    """Layer -> largest distance from torch's state at any position, relative to its length."""


class RemoteAccess(BaseModel):
    """How a service that runs the model is asked. Says where its API key is, never the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key_variable: str | None = None
    """Environment variable with the key."""
    api_key_file: str | None = None
    """File with the key and nothing else."""
    wire: Literal["float32", "float16", "int8"] = "float32"
    """How states travel; float16 and int8 have a scale for each token."""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Longest time for the states of one prompt, with all further tries."""
    num_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further tries after an outage."""
    layers: tuple[int, ...] | None = None
    """Layers that the service gives, ascending; None until it was asked."""


class ModelCard(BaseModel):
    """One frozen model: where it is, what it is, under which licence.

    Facts left None are read from the model's config when the card is looked up (`Registry.get`); facts that are given
    are checked against it when the weights are loaded.
    """

    # An address with a password in it is refused, and must not stand in the error then.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)]
    source: str
    """`hub:org/name`, `folder:/path`, `gguf:/path/file.gguf`, `embedded:name` (shipped in this package), or
    `remote:https://host` of a service (`calm-graph serve-augmenter`) that gives the model's states."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    fingerprint: Digest | None = None
    """Identity of the files (`registry.fingerprint`), verified at load when given; of an ONNX export, of its origin; of
    a service, what it must say of itself."""

    architecture: str | None = None
    """`model_type` of the config; of the text part when the model is a multimodal wrapper."""
    num_layers: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_parameters: PositiveInt | None = None
    """Parameters of the whole published model, tied ones counted once."""
    num_active_parameters: PositiveInt | None = None
    """Those that one token goes through, in a mixture of experts; None: all."""
    vocab_size: PositiveInt | None = None
    context_length: PositiveInt | None = None
    tokenizer: str | None = None
    """Cards with the same, non-None name share token ids."""

    modality: Literal["text", "image", "features"] = "text"
    causal: bool | None = None
    runtime: Literal["torch", "onnx", "remote"] = "torch"
    onnx: OnnxExport | None = None
    """What `calm-graph export` wrote about the graph; None of a model that runs in torch."""
    remote: RemoteAccess | None = None
    """How a service is asked; a service whose card has none, because it came with a checkpoint, is never asked."""
    tags: frozenset[str] = frozenset()
    licence: str = "unspecified"
    trust_remote_code: bool = False
    """Let the model run Python code from its own folder. Off unless the card's author says otherwise."""
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            problems = []
            for key in data:
                if key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(cls.model_fields)}"
                    problems.append(f"unknown field {key!r}; {hint}")
            if problems:
                raise ValueError("; ".join(problems))
            if str(data.get("source", "")).startswith("remote:"):
                data = {"runtime": "remote", "remote": RemoteAccess(), **data}
        return data

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        scheme, _, location = source.partition(":")
        if scheme not in SCHEMES or not location:
            raise ValueError(
                f"got {source!r}; write 'hub:org/name', 'folder:/path', 'gguf:/path/file.gguf', 'embedded:name' or "
                "'remote:https://host'"
            )
        if scheme == "remote":
            check_url(location)
        if scheme == "hub" and location.count("/") != 1:
            raise ValueError(f"got {source!r}; a hub source names an organisation and a model: 'hub:org/name'")
        if scheme == "gguf" and not location.lower().endswith(".gguf"):
            raise ValueError(f"got {source!r}; a gguf source names one file that ends in .gguf")
        return source

    @model_validator(mode="after")
    def _check_remote(self) -> ModelCard:
        if (self.scheme == "remote") != (self.runtime == "remote"):
            raise ValueError(
                f"got runtime {self.runtime!r} and source {self.source!r}; the runtime of a 'remote:' source, and of "
                "no other, is 'remote'"
            )
        if self.remote is not None and self.scheme != "remote":
            raise ValueError(f"remote: is about services, but the source is {self.source!r}; leave it out")
        if self.scheme == "remote" and self.trust_remote_code:
            raise ValueError("trust_remote_code: a service gives states, and never code; leave it out")
        return self

    @field_serializer("tags")
    def _sort_tags(self, tags: frozenset[str]) -> list[str]:
        return sorted(tags)  # a set has no order of its own, and the written card should not change from run to run

    @property
    def scheme(self) -> str:
        """Kind of source: one of `SCHEMES`."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What follows the scheme: a hub id, a path or an embedded name."""
        return self.source.partition(":")[2]

    def missing_facts(self) -> tuple[str, ...]:
        """Name the facts that this card does not carry."""
        return tuple(fact for fact in FACTS if getattr(self, fact) is None)

    def with_facts(self, facts: Mapping[str, Any]) -> ModelCard:
        """Return this card with its empty facts taken from `facts`; what the card says stays.

        Args:
            facts: values by field name, as `read_facts` gives them. `modality` counts as empty unless it was set.
        """
        update = {name: facts[name] for name in self.missing_facts() if facts.get(name) is not None}
        if self.num_active_parameters is None and facts.get("num_active_parameters") is not None:
            update["num_active_parameters"] = facts["num_active_parameters"]
        if "modality" in facts and "modality" not in self.model_fields_set:
            update["modality"] = facts["modality"]
        return self.model_copy(update=update) if update else self


def check_url(url: str) -> None:
    """Refuse an address that no service can have, or that holds a secret, which would be written into checkpoints.

    Raises:
        ValueError: it is one.
    """
    parts = urlsplit(url)
    shown = url if parts.username is None and parts.password is None else "an address with a user's name or password"
    if parts.scheme not in ("http", "https") or not parts.hostname or shown != url or parts.query or parts.fragment:
        raise ValueError(f"got {shown}; a service's address is https://host:port/path, and its key stands elsewhere")
