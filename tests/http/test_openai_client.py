"""The contract, through the official client: whole, streamed, sync, async, and its error classes."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI

from tests.http.conftest import Served

USER = [{"role": "user", "content": "Hello world"}]


def test_a_chat_completion(served: Served) -> None:
    answer = served.openai().chat.completions.create(
        model="garden", messages=[{"role": "system", "content": "Be brief."}, *USER], max_completion_tokens=3, n=2
    )
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "garden"
    assert [(c.index, c.message.role, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "assistant", "0 1 2 ", "length"),
        (1, "assistant", "0 1 2 ", "length"),
    ]
    (request,) = served.client.requests
    rendered = "<system>Be brief.\n<user>Hello world\n<assistant>"
    assert served.client.tokenizer.decode(list(request.prompt_ids)) == rendered
    assert request.prompt_text == "Be brief.\nHello world"
    assert request.composition == "garden" and request.num_choices == 2 and request.sampling.temperature == 1.0
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(request.prompt_ids), 6)
    assert answer.usage.total_tokens == len(request.prompt_ids) + 6


def test_a_chat_without_limits_may_fill_the_context(served: Served) -> None:
    answer = served.openai().chat.completions.create(model="garden", messages=USER)
    assert answer.usage is not None and answer.usage.total_tokens == 192


def test_a_streamed_chat_is_the_whole_one_in_pieces(served: Served) -> None:
    stream = served.openai().chat.completions.create(
        model="garden", messages=USER, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "0 1 2 3 "
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4


def test_completions_take_prompts_of_every_form(served: Served) -> None:
    client = served.openai()
    ids = served.client.tokenizer("Hello world")["input_ids"]
    for prompt, count in (("Hello", 1), (["Hello", "world"], 2), (ids, 1), ([ids, ids[:2]], 2)):
        served.client.requests.clear()
        answer = client.completions.create(model="garden", prompt=prompt, max_tokens=2, n=2)  # type: ignore[arg-type]
        assert [choice.index for choice in answer.choices] == list(range(2 * count))
        assert {choice.text for choice in answer.choices} == {"0 1 "}
        requests = served.client.requests
        assert len({request.id for request in requests}) == count
        assert answer.usage is not None and answer.usage.completion_tokens == 4 * count
        assert answer.usage.prompt_tokens == sum(len(request.prompt_ids) for request in requests)
    assert client.completions.create(model="garden", prompt="x").usage.completion_tokens == 16  # type: ignore[union-attr]


def test_several_prompts_run_together(served: Served) -> None:
    prompts = [f"prompt {number} !slow" for number in range(4)]
    answer = served.openai().completions.create(model="garden", prompt=prompts, max_tokens=3, echo=True)
    assert served.client.most_under_way == 4
    assert [choice.text for choice in answer.choices] == [f"{prompt}0 1 2 " for prompt in prompts]


def test_what_evaluation_harnesses_ask(served: Served) -> None:
    """lm-eval: echo the prompt with its log-probabilities and write nothing, or one token."""
    ids = served.client.tokenizer("The quick brown fox")["input_ids"]
    for new in (0, 1):
        answer = served.openai().completions.create(
            model="garden", prompt=[ids], max_tokens=new, echo=True, logprobs=1, temperature=0, seed=1234
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.token_logprobs is not None and logprobs.tokens is not None
        assert logprobs.token_logprobs == [None] + [-0.5] * (len(ids) - 1 + new)
        assert "".join(logprobs.tokens[: len(ids)]) == "The quick brown fox"
        assert logprobs.top_logprobs is not None and logprobs.top_logprobs[0] is None
        assert max(logprobs.top_logprobs[1].values()) == -0.5
        offsets = [sum(map(len, logprobs.tokens[:index])) for index in range(len(logprobs.tokens))]
        assert logprobs.text_offset == offsets


def test_a_streamed_completion_echoes_and_tells_log_probabilities(served: Served) -> None:
    stream = served.openai().completions.create(
        model="garden", prompt=["Hello", "world"], max_tokens=2, n=2, echo=True, logprobs=0, stream=True
    )
    texts, offsets = [""] * 4, [list[int]() for _ in range(4)]
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        assert choice.logprobs is not None and choice.logprobs.text_offset is not None
        offsets[choice.index] += choice.logprobs.text_offset
    assert texts == ["Hello0 1 "] * 2 + ["world0 1 "] * 2
    assert all(len(set(each)) == len(each) and each == sorted(each) for each in offsets)


def test_log_probabilities_of_a_chat(served: Served) -> None:
    client = served.openai()
    whole = client.chat.completions.create(
        model="garden", messages=USER, max_tokens=2, logprobs=True, top_logprobs=3
    ).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert [(each.logprob, len(each.top_logprobs)) for each in whole.logprobs.content] == [(-0.5, 3)] * 2
    stream = client.chat.completions.create(model="garden", messages=USER, max_tokens=2, logprobs=True, stream=True)
    found = [chunk.choices[0].logprobs for chunk in stream]
    assert [len(each.content or []) for each in found if each is not None] == [1, 1]


def test_augmenters_and_contributions(served: Served) -> None:
    client = served.openai()
    further = {"augmenters": {"prices-kitchen": 0, "prices-garden": 0.5}, "calm": {"contributions": True}}
    whole = client.chat.completions.create(model="garden", messages=USER, max_tokens=3, extra_body=further)
    calm = whole.choices[0].model_extra["calm"]  # type: ignore[index]
    told = [{"prices-garden": 0.0}, {"prices-garden": 0.1}, {"prices-garden": 0.2}]
    assert calm == {"contributions": told, "tokens": ["0 ", "1 ", "2 "]}
    assert served.client.requests[0].scales == {"prices-kitchen": 0, "prices-garden": 0.5}
    prompt = "!accent"  # a held character is a token too
    stream = client.completions.create(model="garden", prompt=prompt, max_tokens=3, stream=True, extra_body=further)
    found = [chunk.choices[0].model_extra["calm"]["contributions"] for chunk in stream]  # type: ignore[index]
    assert found == [[each] for each in told]


def test_sampling_arrives_as_it_was_sent(served: Served) -> None:
    served.openai().completions.create(
        model="arith",
        prompt="x",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"42": -100},
        seed=7,
        stop=["\n", "END"],
        user="somebody",
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [5],
            "include_stop_str_in_output": True,
        },
    )
    (request,) = served.client.requests
    sampling = request.sampling
    assert request.composition == "arith"
    assert (sampling.max_new_tokens, sampling.min_new_tokens, sampling.seed) == (5, 2, 7)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, 1, -1)
    assert sampling.logit_bias == {42: -100} and sampling.stop == ("\n", "END")
    assert sampling.stop_token_ids == {5} and sampling.ignore_eos and sampling.include_stop


def test_the_async_client(served: Served) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                stream = await client.chat.completions.create(
                    model="garden", messages=USER, max_tokens=number, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return list(await asyncio.gather(*(one(number) for number in range(1, 9))))

    assert asyncio.run(ask()) == ["".join(f"{word} " for word in range(number)) for number in range(1, 9)]


def test_models(served: Served) -> None:
    client = served.openai()
    garden, arith = client.models.list().data
    assert (garden.id, garden.object, garden.created) == ("garden", "model", 1_700_000_000)
    assert garden.model_extra == {"root": "garden", "parent": "arith", "max_model_len": 192}
    assert client.models.retrieve("arith") == arith
    with pytest.raises(openai.NotFoundError, match="'garden', 'arith'"):
        client.models.retrieve("nothing/here")


@pytest.mark.parametrize(
    "prompt, kind, status, code",
    [
        ("!refuse", openai.BadRequestError, 400, "invalid_value"),
        ("!overload", openai.RateLimitError, 429, "overloaded"),
        ("!lost", openai.InternalServerError, 503, "service_unavailable"),
        ("!crash", openai.InternalServerError, 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_token_are_statuses(
    served: Served, prompt: str, kind: type[openai.APIStatusError], status: int, code: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        served.openai().completions.create(model="garden", prompt=prompt, stream=stream)
    assert caught.value.status_code == status and caught.value.code == code
    assert "secret" not in str(caught.value)
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "3"
    if status == 500:
        assert caught.value.response.headers["x-request-id"] in caught.value.message


def test_an_error_in_a_stream_reaches_the_client(served: Served) -> None:
    stream = served.openai().completions.create(model="garden", prompt="!break", stream=True)
    assert [next(stream).choices[0].text for _ in range(3)] == ["0 ", "1 ", "2 "]
    with pytest.raises(openai.APIError, match="the replica is gone") as caught:
        next(stream)
    assert caught.value.code == "service_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_half_an_answer_is_not_a_whole_one(served: Served, stream: bool) -> None:
    def ask() -> None:
        list(served.openai().completions.create(model="garden", prompt=["!half", "whole"], stream=stream))

    with pytest.raises(openai.APIError, match="before the answer ended"):
        ask()
