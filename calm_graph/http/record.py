"""What becomes known of one HTTP request while it is answered, for the access log and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One HTTP request.

    Args:
        request_id: The client's, or one of ours.
        method: Of HTTP.
        path: As it came.
        endpoint: The route it took; "other" is none.
        key_name: Name of the API key, if one was asked for.
        model: Name of the model that answers.
        stream: Whether the answer is sent piece by piece.
        num_prompt_tokens: Of all its prompts.
        num_new_tokens: Of all its answers.
        finish_reasons: Why each answer ended.
        first_token_s: From the request to its first token, in seconds.
        status: HTTP status, or that of the error which ended a stream.
        error_code: Of the error object.
        prompts: Texts of the prompts, where they may be logged.
        started: When it came, by `time.perf_counter`.
    """

    request_id: str
    method: str
    path: str
    endpoint: str = "other"
    key_name: str | None = None
    model: str = ""
    stream: bool = False
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    first_token_s: float | None = None
    status: int = 0
    error_code: str | None = None
    prompts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


def record_of(request: Request) -> RequestRecord:
    """Return the record that the outermost middleware began."""
    record = request.scope["calm_graph.record"]
    assert isinstance(record, RequestRecord)
    return record
