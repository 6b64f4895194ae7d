"""All that an augmenter's service may be told, for Python, YAML and the command line alike."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from calm_graph.declare.base import Declared


class AugmenterSettings(Declared):
    """What is served, to whom, on how much of the cluster.

    Args:
        name: Card of the model; with `onnx`, what it is called.
        layers: Layers that may be read, 0-based; of an export, by default all that it has.
        onnx: Folder of an ONNX export to run; torch is not needed then.
        registries: Folders of cards (*.json) of models that are not built in.
        dtype: Of the weights in torch; None keeps what their files hold.
        api_keys_file: Lines `name:key`; those of the variable CALM_GRAPH_API_KEYS are added. Without any key everybody
            may ask.
        max_requests_per_key: Requests of one key that may be under way together; None does not count them.
        max_tokens: Of one request, over all its rows.
        max_rows: Of one request.
        max_body_bytes: Largest body of a request.
        max_batch_tokens: Of one run of the model, padding included; a larger request runs alone.
        max_wait_s: A request waits so long for others to run with.
        max_waiting: Requests that may wait; more are refused.
        request_timeout_s: Longest time of a request.
        num_replicas: On Ray; 0 is one in the process itself, without Ray (from Python and the command line only).
        num_cpus: Of each replica, and its threads; None takes one of Ray's and all threads without.
        num_gpus: Of each replica; with one, the model is on it.
        resources: Further Ray resources of each replica, so that it is placed where they are.
        drain_s: How long a replica that is stopped goes on with what is under way.
    """

    root: ClassVar[str] = "settings"

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)
    layers: tuple[int, ...] = ()
    onnx: Path | None = None
    registries: tuple[Path, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    api_keys_file: Path | None = None
    max_requests_per_key: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=16_384, ge=1)
    max_rows: int = Field(default=256, ge=1)
    max_body_bytes: int = Field(default=1024**2, ge=1)
    max_batch_tokens: int = Field(default=4096, ge=1)
    max_wait_s: float = Field(default=0.002, ge=0, allow_inf_nan=False)
    max_waiting: int = Field(default=256, ge=1)
    request_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    num_replicas: int = Field(default=1, ge=0)
    num_cpus: float | None = Field(default=None, gt=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict)
    drain_s: float = Field(default=30.0, ge=0)

    def absolute(self) -> AugmenterSettings:
        """The same with paths that name the same files in a process started elsewhere."""
        return self.model_copy(
            update={
                "onnx": self.onnx and self.onnx.absolute(),
                "registries": tuple(each.absolute() for each in self.registries),
                "api_keys_file": self.api_keys_file and self.api_keys_file.absolute(),
            }
        )
