"""Overload at 10 x capacity for a minute: what is accepted keeps 0.8 of the best throughput; refusals take 100 ms."""

from __future__ import annotations

from benchmarks._serving import DEMO, load_average, serving
from benchmarks.bar import Bar
from calm_graph.serve.load.parts import Load, LoadResult, Reply, percentile

BAR_RATIO = 0.8
BAR_REFUSED_S = 0.1
TIMES = 10
SECONDS = 60.0
NUM_RUNNING = 8
NUM_WAITING = 8
NUM_TOKENS = 64
PROMPTS = ("7+5=", "1+2-3+4-5+6=", "12-7+30-18+2-9+44-3=", "1+1-2+3-4+5-6+7-8+9-1+2-3+4=")


def measure() -> Bar:
    """Find the best throughput, then offer ten times as many requests; the value is accepted tokens/s over the best.

    The bar also holds the p99 of refusals to 100 ms, each with Retry-After, and allows no other error.
    """
    options = ("--num-cpus", "1", "--max-running", str(NUM_RUNNING), "--max-waiting", str(NUM_WAITING))
    with serving(DEMO, *options) as server:
        found: list[LoadResult] = []
        for concurrency in (NUM_RUNNING, NUM_RUNNING, NUM_RUNNING * 3 // 2):
            found.append(server.put(_load(concurrency=concurrency, duration_s=SECONDS / 6), PROMPTS))
            print(f"{concurrency} under way: {_shown(found[-1])}", flush=True)
        best = max(found, key=lambda result: result.tokens_per_s)
        rate = TIMES * best.requests_per_s
        flooded = server.put(_load(rate=rate, duration_s=SECONDS), PROMPTS)
        print(f"{rate:.0f} requests/s: {_shown(flooded)}", flush=True)
        after = server.put(_load(concurrency=NUM_RUNNING, duration_s=SECONDS / 6), PROMPTS)
        print(f"{NUM_RUNNING} under way again: {_shown(after)}", flush=True)
    refused = [reply for reply in flooded.replies if reply.status == 429]
    refused_s = percentile([reply.seconds for reply in refused], 99)
    all_told = all(reply.retry_after_s is not None and reply.retry_after_s >= 1 for reply in refused)
    ratio = flooded.tokens_per_s / best.tokens_per_s
    print(
        f"refused {len(refused)} of {len(flooded.replies)}: p50 {_ms(refused, 50)}, p99 {_ms(refused, 99)} "
        f"(bar {1000 * BAR_REFUSED_S:.0f} ms), Retry-After on {'all' if all_told else 'NOT all'}; other errors: "
        f"{({code: count for code, count in flooded.errors.items() if code != 'overloaded'}) or 'none'}"
    )
    only = set(flooded.errors) == {"overloaded"}
    holds = ratio >= BAR_RATIO and refused_s <= BAR_REFUSED_S and all_told and only
    return Bar(name="serve_overload", value=round(ratio, 2), bar=BAR_RATIO, holds=holds, unit="of the best")


def _load(*, duration_s: float, concurrency: int | None = None, rate: float | None = None) -> Load:
    return Load(concurrency=concurrency, rate=rate, duration_s=duration_s, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS)


def _shown(result: LoadResult) -> str:
    return (
        f"{result.tokens_per_s:.0f} tokens/s, {result.requests_per_s:.1f} requests/s, first token p95 "
        f"{1000 * result.first_token_s(95):.0f} ms, errors {result.errors or 'none'}; {load_average()}"
    )


def _ms(refused: list[Reply], percent: float) -> str:
    return f"{1000 * percentile([reply.seconds for reply in refused], percent):.0f} ms"
