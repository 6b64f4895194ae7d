"""The bodies of requests: OpenAI's fields, vLLM's useful ones, and ours (`augmenters`, `calm`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from calm_graph.generate.sampling import MAX_TOP_LOGPROBS, Sampling
from calm_graph.http.fields import HARMLESS, UNSUPPORTED, Fields

MAX_STOPS = 64
_LONG = 2**63 - 1


def _one_message(wanted: str) -> WrapValidator:
    """Say once what a field may be, instead of once for each member of its union."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("union_type", "{wanted} is needed", {"wanted": wanted}) from None

    return WrapValidator(check)


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1)]
Prompt = Annotated[
    str | Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)],
    _one_message("a text, a list of texts, a list of token ids or a list of such lists, none of them empty,"),
]
Stop = Annotated[
    str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)],
    _one_message(f"a text or a list of at most {MAX_STOPS} texts, none of them empty,"),
]
TokenId = Annotated[int, Field(ge=0, le=2**31)]
Scale = Annotated[float, Field(ge=-100, le=100)]
TemplateValue = Annotated[
    bool | Annotated[int, Field(ge=-(10**6), le=10**6)] | float | Annotated[str, Field(max_length=10_000)],
    _one_message("a text, a number of at most a million, or a truth value"),
]


class StreamOptions(Fields):
    """How an answer is streamed."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "include_obfuscation": (False,),
        "continuous_usage_stats": (False,),
    }

    include_usage: bool = False


class CalmOptions(Fields):
    """What only this server can tell of an answer."""

    contributions: bool = False


class TextPart(Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _content_text(value: Any) -> Any:
    """Return content given in parts as one text."""
    if not isinstance(value, list):
        return value
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "unsupported_parameter", "part {index} is not of type 'text', the only supported one", {"index": index}
            )
        texts.append(TextPart.model_validate(part).text)
    return "\n".join(texts)


class ChatMessage(Fields):
    """One message; a `developer` is the template's `system`."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "name": (),
        "refusal": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content_text, json_schema_input_type=str | list[TextPart])]


class GenerationFields(Fields):
    """What both kinds of completions have in common.

    The names and defaults are OpenAI's, then vLLM's; `augmenters` and `calm` are ours.
    """

    harmless: ClassVar[frozenset[str]] = HARMLESS

    model: str = ""
    n: int = Field(default=1, ge=1, le=10_000)
    max_tokens: int | None = Field(default=None, ge=0, le=2**31)
    min_tokens: int = Field(default=0, ge=0, le=2**31)
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, le=2**31, description="0 or -1 is all.")
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100)],
    ] = Field(default_factory=dict)
    seed: int | None = Field(default=None, ge=-_LONG, le=_LONG)
    stop: Stop = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=1024)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    augmenters: dict[str, Scale] = Field(default_factory=dict, description="Augmenter -> factor; 0 does not run it.")
    calm: CalmOptions = CalmOptions()
    best_of: int | None = Field(default=None, description="Only `n` is supported.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Refuse fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("value_error", "is allowed only with stream", {"param": "stream_options"})
        if self.best_of not in (None, self.n):
            raise PydanticCustomError(
                "unsupported_parameter", "only the value of n ({n}) is supported", {"param": "best_of", "n": self.n}
            )
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, *, max_new_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None) -> Sampling:
        """Return how tokens are chosen.

        Args:
            max_new_tokens: Of one answer.
            logprobs: How many likeliest tokens are told of each new token; None tells nothing.
            prompt_logprobs: The same of the prompt.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        return Sampling(
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            seed=self.seed,
            stop=tuple(text for text in stops if text),
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            include_stop=self.include_stop_str_in_output,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class CompletionBody(GenerationFields):
    """The body of /v1/completions."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        name: values for name, values in UNSUPPORTED.items() if name not in ("echo", "add_special_tokens")
    }

    prompt: Prompt
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    add_special_tokens: bool = Field(default=True, description="Before prompts that are texts.")


class TemplateFields(Fields):
    """How messages become a prompt."""

    messages: list[ChatMessage] = Field(min_length=1)
    add_generation_prompt: bool | None = Field(default=None, description="True unless continue_final_message.")
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, TemplateValue] = Field(default_factory=dict, max_length=32)


class ChatBody(TemplateFields, GenerationFields):
    """The body of /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        name: values for name, values in UNSUPPORTED.items() if name != "top_logprobs"
    }

    max_completion_tokens: int | None = Field(default=None, ge=0, le=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _top_of_nothing(self) -> Self:
        """Refuse top_logprobs where no log-probabilities are asked for, as OpenAI does."""
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("value_error", "is allowed only with logprobs", {"param": "top_logprobs"})
        return self


class TokenizeTextBody(Fields):
    """The body of /tokenize for a text."""

    model: str = ""
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatBody(TemplateFields):
    """The body of /tokenize for messages."""

    model: str = ""
    return_token_strs: bool = False


class DetokenizeBody(Fields):
    """The body of /detokenize."""

    model: str = ""
    tokens: list[TokenId]
