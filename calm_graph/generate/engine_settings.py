"""What an engine may use."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine may use.

    Args:
        max_running: Answers made at the same time.
        max_waiting: Requests that may wait for room; more are refused.
        max_cache_tokens: Tokens of the anchor kept in all, padding included: the rows times the longest of them.
        prefill_tokens: Prompt tokens read between two steps of the answers under way.
        max_prefills: Prompts being read at the same time, so that a short one need not wait until a long one is read.
        prefix_tokens: Tokens of prompts kept for later requests that begin alike, short prompts counted as 32; 0 keeps
            none.
    """

    max_running: int = 16
    max_waiting: int = 128
    max_cache_tokens: int = 65_536
    prefill_tokens: int = 256
    max_prefills: int = 4
    prefix_tokens: int = 8_192

    def __post_init__(self) -> None:
        least = {"max_waiting": 0, "prefix_tokens": 0}
        for field in fields(self):
            value, allowed = getattr(self, field.name), least.get(field.name, 1)
            if value < allowed:
                raise ValueError(f"{field.name}: got {value}, but {allowed} or more is allowed")
