"""The access log: one JSON object a line, without prompts unless they are wanted."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from calm_graph.http.record import RequestRecord

logger = logging.getLogger("calm_graph.serve.access")


def log_request(record: RequestRecord) -> None:
    """Write the line of a request that has ended."""
    if not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": record.request_id,
        "key": record.key_name,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "duration_s": round(time.perf_counter() - record.started, 6),
    }
    if record.model:
        fields |= {
            "model": record.model,
            "stream": record.stream,
            "num_prompt_tokens": record.num_prompt_tokens,
            "num_new_tokens": record.num_new_tokens,
            "first_token_s": None if record.first_token_s is None else round(record.first_token_s, 6),
            "finish_reasons": record.finish_reasons,
        }
    if record.error_code:
        fields["error"] = record.error_code
    if record.prompts:
        fields["prompts"] = record.prompts
    logger.info(json.dumps(fields))  # ASCII: a prompt cannot begin a line of its own


def log_to(stream: TextIO = sys.stderr) -> None:
    """Send the access log to a stream; without this it goes where the program's logging sends it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
