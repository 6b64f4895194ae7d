"""The bytes of tokens join to the text that the tokenizer itself decodes."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from calm_graph.errors import InputError
from calm_graph.model.token_bytes import TokenBytes
from tests.model.pico import CORPUS, SPECIAL, make_tokenizer, tokenizer_json
from tests.model.text import any_text

KINDS = ("bytes", "spaces", "prepended", "metaspace", "words", "level")
LOSSLESS = ("bytes", "spaces", "prepended", "metaspace")
TOKENIZERS = {kind: make_tokenizer(kind) for kind in KINDS}
TABLES = {kind: TokenBytes(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
NO_CONTROL = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def decoded(kind: str, ids: list[int]) -> str:
    return TOKENIZERS[kind].backend_tokenizer.decode(ids, skip_special_tokens=True)


def joined(kind: str, ids: list[int]) -> str:
    return b"".join(TABLES[kind].text(ids)).decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", CORPUS)
def test_tokens_join_to_what_the_tokenizer_decodes(kind: str, text: str) -> None:
    ids = TOKENIZERS[kind].backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert joined(kind, ids) == decoded(kind, ids)


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=any_text)
def test_any_text_comes_back(kind: str, text: str) -> None:
    backend = Tokenizer.from_str(tokenizer_json(kind))
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    assume(TOKENIZERS[kind].unk_token_id not in ids)
    expected = text
    if kind != "bytes":
        expected = text.replace("▁", " ")  # these tokenizers cannot tell the two apart
    if kind == "metaspace" and text.startswith(("▁", " ")):
        expected = expected[1:]  # nor, here, whether a text began with a space
    assert joined(kind, ids) == expected


@given(ids=st.lists(st.integers(0, len(TOKENIZERS["bytes"]) - 1), max_size=20))
def test_any_byte_level_ids_join_to_what_the_tokenizer_decodes(ids: list[int]) -> None:
    assert joined("bytes", ids) == decoded("bytes", ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text, place=st.integers(0, 40))
def test_a_token_stands_for_the_same_bytes_wherever_the_ids_are_cut(kind: str, text: str, place: int) -> None:
    ids = TOKENIZERS[kind].backend_tokenizer.encode(text, add_special_tokens=False).ids
    table = TABLES[kind]
    assert table(ids[:place]) + table(ids[place:]) == table(ids)
    assert table.text(ids)[: len(ids[:place])] == table.text(ids[:place])


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_and_unknown_ids_stand_for_no_bytes(kind: str) -> None:
    ids = TOKENIZERS[kind].convert_tokens_to_ids(SPECIAL)
    assert TABLES[kind]([*ids, 10**6, -1]) == [b""] * (len(SPECIAL) + 2)


def test_added_tokens_that_are_text_stand_for_their_text() -> None:
    tokenizer = make_tokenizer("bytes")
    tokenizer.add_tokens(["<tool>", "    ", "日本"])
    ids = tokenizer("x<tool>    日本", add_special_tokens=False)["input_ids"]
    assert b"".join(TokenBytes(tokenizer)(ids)).decode() == "x<tool>    日本"


def test_a_metaspace_that_adds_no_space_drops_none() -> None:
    specification = json.loads(tokenizer_json("metaspace"))
    for node in (specification["pre_tokenizer"], specification["decoder"]["decoders"][0]):
        node["prepend_scheme"] = "never"
    backend = Tokenizer.from_str(json.dumps(specification))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = backend.encode(" of text", add_special_tokens=False).ids
    assert b"".join(TokenBytes(tokenizer).text(ids)).decode() == backend.decode(ids) == " of text"


def test_an_unknown_decoder_is_an_error() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}))
    backend.decoder = decoders.CTC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="speech")
    with pytest.raises(InputError, match=r"tokenizer of 'speech': decoder \['CTC'\] is not one of"):
        TokenBytes(tokenizer)


def test_a_tokenizer_without_a_fast_backend_is_an_error() -> None:
    class Slow:
        name_or_path = "old"

    with pytest.raises(InputError, match="tokenizer of 'old' is Slow, which has no fast backend"):
        TokenBytes(Slow())
