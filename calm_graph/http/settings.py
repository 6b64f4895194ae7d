"""What the HTTP layer allows, and whom."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from calm_graph.declare.base import Declared


class HttpSettings(Declared):
    """The limits and the doors of one server.

    Args:
        api_keys_file: Lines `name:key`; those of the environment variable CALM_GRAPH_API_KEYS (lines or a comma list)
            are added. Without any key nobody is asked for one.
        max_body_bytes: Largest body of a request.
        max_prompt_tokens: Longest prompt; None leaves it to the anchor's context.
        max_new_tokens: Longest answer that may be asked for; None leaves it to the anchor's context.
        max_choices: Most answers to one request, over all its prompts.
        max_requests_per_key: Requests of one key that may be under way together; None does not count them. Where
            there are no keys, everybody shares one.
        request_timeout_s: Longest time from a request to the end of its answer.
        log_prompts: Whether prompts stand in the access log.
        cors_origins: Origins of web pages that may ask; none by default.
    """

    api_keys_file: Path | None = None
    max_body_bytes: int = Field(default=2 * 1024**2, ge=1)
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    max_choices: int = Field(default=128, ge=1)
    max_requests_per_key: int | None = Field(default=None, ge=1)
    request_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    log_prompts: bool = False
    cors_origins: tuple[str, ...] = ()
