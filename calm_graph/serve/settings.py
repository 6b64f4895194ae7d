"""All that a deployment may be told, for Python, YAML and the command line alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from calm_graph.declare.base import Declared
from calm_graph.generate.engine_settings import EngineSettings
from calm_graph.http.settings import HttpSettings


class ServeSettings(Declared):
    """What is deployed, on how much of the cluster.

    Args:
        checkpoints: Folders or hub ids of compositions over one anchor; `NAME=CHECKPOINT` gives one a name of your own.
        registries: Folders of cards (*.json) of models that are not built in.
        selectors: Name of a composition -> what chooses among its augmenters where a request does not name them:
            `package.module:function`, or a file that `LearnedSelector.save` wrote. Without one all of them run.
        exports: Folders of ONNX exports, to run in place of the augmenters they were made from.
        remotes: `NAME=URL`: the service at this address runs the augmenter of this name; its key is in the variable
            CALM_GRAPH_REMOTE_KEY of the engines. A card in `registries` may say more.
        dtype: Of the frozen weights; None keeps what their files hold.
        num_replicas: Engines; None leaves it to `autoscaling`, and 0 is one in the process itself, without Ray (from
            Python and the command line only).
        autoscaling: Arguments of Ray Serve's AutoscalingConfig; `min_replicas` may be 0.
        num_cpus: Of each engine; as many threads compute.
        num_gpus: Of each engine; with one, its models are on it.
        resources: Further Ray resources of each engine, so that it is placed where they are.
        num_http_replicas: Processes that take requests and tokenise.
        engine: What each engine may use.
        http: Limits and keys.
        drain_s: How long a replica that is stopped goes on with what is under way.
        start_s: How long an engine may take to load.
    """

    root: ClassVar[str] = "settings"

    checkpoints: tuple[str, ...] = Field(min_length=1)
    registries: tuple[str, ...] = ()
    selectors: dict[str, str] = Field(default_factory=dict)
    exports: tuple[str, ...] = ()
    remotes: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    num_replicas: int | None = Field(default=1, ge=0)
    autoscaling: dict[str, Any] | None = None
    num_cpus: float = Field(default=1, gt=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)
    num_http_replicas: int = Field(default=1, ge=1)
    engine: EngineSettings = EngineSettings()
    http: HttpSettings = HttpSettings()
    drain_s: float = Field(default=60.0, ge=0)
    start_s: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _scales_in_one_way(self) -> ServeSettings:
        if (self.num_replicas is None) == (self.autoscaling is None):
            raise ValueError(
                f"got num_replicas={self.num_replicas} and autoscaling={self.autoscaling}, but one of them decides how "
                "many engines there are; set the other to None"
            )
        return self

    @field_validator("remotes")
    @classmethod
    def _are_named(cls, remotes: tuple[str, ...]) -> tuple[str, ...]:
        for each in remotes:
            if not all(each.partition("=")):
                raise ValueError(f"got {each!r}; write NAME=https://host:port, with the augmenter's name")
        return remotes

    @property
    def named_remotes(self) -> dict[str, str]:
        """Augmenter -> address of its service."""
        return {name: url for name, _, url in (each.partition("=") for each in self.remotes)}

    @property
    def named_checkpoints(self) -> list[tuple[str | None, str]]:
        """Checkpoints with the names they were given, if any."""
        parts = [each.partition("=") for each in self.checkpoints]
        # A folder's own name may have such a sign in it, but no name of a composition has a slash.
        return [
            (name, path) if path and "/" not in name else (None, name + equals + path) for name, equals, path in parts
        ]

    def absolute(self) -> ServeSettings:
        """The same with paths that name the same files in a process started elsewhere."""
        return self.model_copy(
            update={
                "checkpoints": tuple(
                    f"{name}={_absolute(each)}" if name else _absolute(each) for name, each in self.named_checkpoints
                ),
                "registries": tuple(_absolute(each) for each in self.registries),
                "selectors": {name: _absolute(each) for name, each in self.selectors.items()},
                "exports": tuple(_absolute(each) for each in self.exports),
                "http": self.http.model_copy(
                    update={"api_keys_file": self.http.api_keys_file and self.http.api_keys_file.absolute()}
                ),
            }
        )


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path
