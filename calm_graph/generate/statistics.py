"""What an engine counts, for those who watch it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class EngineStatistics:
    """Counts since the engine began, and what is so now.

    Args:
        num_running: Answers being made now.
        num_waiting: Requests that wait for room now.
        num_steps: Steps so far.
        num_decoded_rows: Answers that steps went on with, summed over steps; over `num_steps` it is the batch size.
        num_prompt_tokens: Tokens of prompts so far.
        num_reused_tokens: Those of them that did not have to be read again.
        num_new_tokens: Tokens of answers so far.
        num_finished: Finish reason -> answers.
        cache_tokens: Anchor tokens kept now, padding included.
        cache_limit: The most that are kept.
        prefix_tokens: Tokens of prompts that were read and are kept for requests that begin alike.
        step_s: Seconds spent in steps.
        augmenter_s: Augmenter -> seconds it ran.
        augmenter_tokens: Augmenter -> its tokens that were run.
        skipped_tokens: Augmenter -> anchor tokens of requests for which it was switched off.
        saved_flops: Augmenter -> operations that were not done for them.
        num_unavailable: Augmenter -> requests that were answered without it, because its service did not answer.
        contribution: Augmenter -> length of what it wrote, over the stream's own, at the newest tokens.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    num_decoded_rows: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_new_tokens: int = 0
    num_finished: dict[str, int] = field(default_factory=dict)
    cache_tokens: int = 0
    cache_limit: int = 0
    prefix_tokens: int = 0
    step_s: float = 0.0
    augmenter_s: dict[str, float] = field(default_factory=dict)
    augmenter_tokens: dict[str, int] = field(default_factory=dict)
    skipped_tokens: dict[str, int] = field(default_factory=dict)
    saved_flops: dict[str, float] = field(default_factory=dict)
    num_unavailable: dict[str, int] = field(default_factory=dict)
    contribution: dict[str, float] = field(default_factory=dict)

    def count_finished(self, reason: str, count: int = 1) -> None:
        """Count answers that ended."""
        if count:
            self.num_finished[reason] = self.num_finished.get(reason, 0) + count

    def count_skipped(self, names: Mapping[str, int], *, num_tokens: int) -> None:
        """Count a prompt over which augmenters did not run.

        Args:
            names: Augmenter -> operations for each token.
            num_tokens: Of the prompt.
        """
        for name, flops in names.items():
            self.skipped_tokens[name] = self.skipped_tokens.get(name, 0) + num_tokens
            self.saved_flops[name] = self.saved_flops.get(name, 0.0) + flops * num_tokens

    def note_contributions(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Take the mean over the rows that have an augmenter as how much it contributes now."""
        found: dict[str, list[float]] = {}
        for row in rows:
            for name, share in row.items():
                found.setdefault(name, []).append(share)
        self.contribution |= {name: sum(values) / len(values) for name, values in found.items()}


def added(engines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts of several engines together.

    Args:
        engines: What each counts, as a mapping.

    Returns:
        Sums, also key by key; of contributions the mean.
    """
    total: dict[str, Any] = {}
    num_engines: dict[str, int] = {}
    for engine in engines:
        for name, value in engine.items():
            if not isinstance(value, Mapping):
                total[name] = total.get(name, 0) + value
                continue
            sums = total.setdefault(name, {})
            for key, each in value.items():
                sums[key] = sums.get(key, 0) + each
                if name == "contribution":
                    num_engines[key] = num_engines.get(key, 0) + 1
    for key, count in num_engines.items():
        total["contribution"][key] /= count
    return total
