"""Ask a server through the official client: whole, streamed, with an augmenter off, and who wrote each token.

python -m examples.serve.openai_client --base-url http://127.0.0.1:8000/v1 "price of apples"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from openai import OpenAI


def ask(client: OpenAI, question: str, *, max_tokens: int = 32, show: Callable[[str], None] = print) -> None:
    """Ask the default model one question in four ways.

    Args:
        client: Of the server.
        question: What is asked.
        max_tokens: Of each answer.
        show: Gets the lines to show.
    """
    model = next(iter(client.models.list()))
    show(f"{model.id}: context of {model.max_model_len} tokens")  # type: ignore[attr-defined]

    answer = client.completions.create(model=model.id, prompt=question, max_tokens=max_tokens, temperature=0)
    show(f"whole:     {answer.choices[0].text!r}")

    stream = client.completions.create(
        model=model.id, prompt=question, max_tokens=max_tokens, temperature=0, stream=True
    )
    show(f"streamed:  {[chunk.choices[0].text for chunk in stream]}")

    # Our extensions go into extra_body. A factor of 0 does not run the augmenter at all.
    (graph,) = [each for each in _compositions(client) if each["id"] == model.id]
    off = dict.fromkeys(graph["augmenters"], 0)
    alone = client.completions.create(
        model=model.id, prompt=question, max_tokens=max_tokens, temperature=0, extra_body={"augmenters": off}
    )
    show(f"all off:   {alone.choices[0].text!r}")

    told = client.completions.create(
        model=model.id,
        prompt=question,
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"calm": {"contributions": True}},
    )
    calm = told.choices[0].calm  # type: ignore[attr-defined]
    for token, contributions in zip(calm["tokens"], calm["contributions"], strict=True):
        shares = ", ".join(f"{name} {share:.3f}" for name, share in contributions.items())
        show(f"  {token!r:12} {shares}")


def _compositions(client: OpenAI) -> list[dict[str, Any]]:
    """Return what the server says of its compositions; the client has no method of its own for it."""
    answer = client.get("/compositions", cast_to=dict[str, object])
    return answer["data"]  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="price of apples")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none", help="where the server asks for one")
    given = parser.parse_args(arguments)
    ask(OpenAI(base_url=given.base_url, api_key=given.api_key), given.question)


if __name__ == "__main__":
    main()
