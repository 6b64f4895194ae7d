"""Prometheus metrics of one app: its own requests, and the engine's counts as they are when somebody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from calm_graph.http.record import RequestRecord

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)

# Field of EngineStatistics, name, help. Names follow vLLM's where it has the same thing.
_GAUGES = (
    ("num_running", "num_requests_running", "Answers being made now."),
    ("num_waiting", "num_requests_waiting", "Requests that wait for room now."),
    ("cache_tokens", "cache_tokens", "Anchor tokens kept now, padding included."),
    ("cache_limit", "cache_limit_tokens", "The most anchor tokens that are kept."),
    ("prefix_tokens", "prefix_tokens", "Tokens of prompts kept for requests that begin alike."),
)
_COUNTERS = (
    ("num_steps", "engine_steps", "Steps of the engine."),
    ("step_s", "engine_step_seconds", "Seconds spent in steps."),
    ("num_decoded_rows", "engine_decoded_rows", "Answers that steps went on with, summed over steps."),
    ("num_prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("num_reused_tokens", "reused_prompt_tokens", "Tokens of prompts that did not have to be read again."),
    ("num_new_tokens", "generation_tokens", "Tokens of answers."),
)
_AUGMENTER_COUNTERS = (
    ("augmenter_s", "augmenter_seconds", "Seconds that the augmenter ran."),
    ("augmenter_tokens", "augmenter_tokens", "Tokens of the augmenter that were run."),
    ("skipped_tokens", "augmenter_skipped_tokens", "Anchor tokens for which the augmenter was switched off."),
    (
        "num_unavailable",
        "augmenter_unavailable",
        "Requests answered without the augmenter, because its service did not answer.",
    ),
    ("saved_flops", "augmenter_saved_flops", "Operations that were not done for them."),
)


class Metrics:
    """The metrics of one app.

    Args:
        engine_name: Label `model_name` of the engine's numbers.
    """

    def __init__(self, engine_name: str) -> None:
        self._engine_name = engine_name
        self._registry = registry = CollectorRegistry()
        model = ("model_name",)
        self._requests = Counter(
            "calm_graph_requests",
            "HTTP requests that have ended; a stream that broke has the status of its error.",
            ("endpoint", "model_name", "status"),
            registry=registry,
        )
        self._first_token = Histogram(
            "calm_graph_time_to_first_token_seconds",
            "From the request to its first token.",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self._next_token = Histogram(
            "calm_graph_inter_token_latency_seconds",
            "Between two tokens of an answer.",
            model,
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "calm_graph_e2e_request_latency_seconds",
            "From the request to the end of its answer.",
            model,
            buckets=_SECONDS,
            registry=registry,
        )
        self._prompt_tokens = Histogram(
            "calm_graph_request_prompt_tokens",
            "Tokens of the prompts of a request.",
            model,
            buckets=_TOKENS,
            registry=registry,
        )
        self._new_tokens = Histogram(
            "calm_graph_request_generation_tokens",
            "Tokens of the answers to a request.",
            model,
            buckets=_TOKENS,
            registry=registry,
        )

    @property
    def registry(self) -> CollectorRegistry:
        """Where further metrics of the app are registered."""
        return self._registry

    def token(self, record: RequestRecord, *, since: float | None) -> float:
        """Note that a token came.

        Args:
            record: Of the request.
            since: When the one before it came, by `time.perf_counter`; None is the answer's first.

        Returns:
            When it came.
        """
        now = time.perf_counter()
        record.num_new_tokens += 1
        if record.first_token_s is None:
            record.first_token_s = now - record.started
            self._first_token.labels(record.model).observe(record.first_token_s)
        if since is not None:
            self._next_token.labels(record.model).observe(now - since)
        return now

    def ended(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.endpoint, record.model, str(record.status)).inc()
        if record.model and record.num_prompt_tokens:
            self._whole.labels(record.model).observe(time.perf_counter() - record.started)
            self._prompt_tokens.labels(record.model).observe(record.num_prompt_tokens)
            self._new_tokens.labels(record.model).observe(record.num_new_tokens)

    def text(self, statistics: Mapping[str, Any] | None) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            statistics: The engine's, as `EngineStatistics` has them; None: it does not answer.
        """
        engine = CollectorRegistry()
        engine.register(_Engine(statistics, self._engine_name))
        return generate_latest(self._registry) + generate_latest(engine)


class _Engine:
    """Shows the engine's numbers to prometheus_client."""

    def __init__(self, statistics: Mapping[str, Any] | None, name: str) -> None:
        self._statistics = statistics
        self._name = name

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        statistics = self._statistics
        yield self._one(GaugeMetricFamily, "engine_up", "Whether the engine answers.", float(statistics is not None))
        if statistics is None:
            return
        for field, name, help_text in _GAUGES:
            yield self._one(GaugeMetricFamily, name, help_text, statistics.get(field, 0))
        for field, name, help_text in _COUNTERS:
            yield self._one(CounterMetricFamily, name, help_text, statistics.get(field, 0))
        limit, steps = statistics.get("cache_limit", 0), statistics.get("num_steps", 0)
        usage = statistics.get("cache_tokens", 0) / limit if limit else 0.0
        yield self._one(GaugeMetricFamily, "cache_usage_ratio", "Kept anchor tokens over the most, 0..1.", usage)
        batch = statistics.get("num_decoded_rows", 0) / steps if steps else 0.0
        yield self._one(GaugeMetricFamily, "batch_size", "Mean answers per step since the engine began.", batch)
        yield self._many(
            CounterMetricFamily,
            "answers_finished",
            "Answers that have ended.",
            "finished_reason",
            statistics.get("num_finished", {}),
        )
        for field, name, help_text in _AUGMENTER_COUNTERS:
            yield self._many(CounterMetricFamily, name, help_text, "augmenter", statistics.get(field, {}))
        yield self._many(
            GaugeMetricFamily,
            "augmenter_contribution_ratio",
            "Length of what the augmenter wrote at the newest tokens, over the anchor's own stream.",
            "augmenter",
            statistics.get("contribution", {}),
        )

    def _one(self, kind: Any, name: str, help_text: str, value: float) -> Metric:
        family = kind(f"calm_graph_{name}", help_text, labels=("model_name",))
        family.add_metric((self._name,), value)
        return family  # type: ignore[no-any-return]

    def _many(self, kind: Any, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = kind(f"calm_graph_{name}", help_text, labels=("model_name", label))
        for key, value in values.items():
            family.add_metric((self._name, key), value)
        return family  # type: ignore[no-any-return]
