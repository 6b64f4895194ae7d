"""/tokenize, /detokenize and /tokenizer_info: the anchor's tokens of a text or of messages, and back."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from calm_graph.http.protocol import DetokenizeBody, TokenizeChatBody, TokenizeTextBody
from calm_graph.http.service import Service, check_token_ids
from calm_graph.http.tokenise import chat_ids, text_ids


class Tokenized(BaseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What a client needs to know to use the other two in place of a tokenizer of its own; vLLM's names."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    vocab_size: int


def token_routes(service: Service) -> APIRouter:
    """Return the routes of tokens."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeChatBody | TokenizeTextBody) -> Tokenized:
        """Return what the anchor would read."""
        model = service.model(body.model)
        tokenizer = service.client.tokenizer
        if isinstance(body, TokenizeTextBody):
            ids = await text_ids(tokenizer, body.prompt, special_tokens=body.add_special_tokens)
        else:
            ids, _ = await chat_ids(tokenizer, body)
        texts = tokenizer.convert_ids_to_tokens(ids) if body.return_token_strs else None
        return Tokenized(count=len(ids), max_model_len=model.context_length, tokens=ids, token_strs=texts)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Detokenized:
        """Return the text of tokens."""
        service.model(body.model)
        tokenizer = service.client.tokenizer
        check_token_ids(tokenizer, {"tokens": body.tokens})
        return Detokenized(prompt=tokenizer.decode(body.tokens))

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> TokenizerInfo:
        """Return the anchor's special tokens and its chat template."""
        tokenizer = service.client.tokenizer
        return TokenizerInfo(
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            unk_token=tokenizer.unk_token,
            chat_template=tokenizer.chat_template,
            vocab_size=len(tokenizer),
        )

    return router
