"""An augmenter's three encoders share its vocabulary, and encode as the tokenizer that they were made of."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer

from calm_graph.model.text_tokenizer import TextTokenizer
from tests.model.pico import make_tokenizer

TEXTS = ["price of apples", " now", "", "a</s> <s>b", "é\u0301 😀\n\t two  spaces", "<turn>price<odd>"]


@pytest.mark.parametrize("kind", ["bytes", "spaces", "words", "metaspace", "prepended", "level"])
def test_encoders_are_the_tokenizer_without_its_padding_and_cutting(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    # One that is control and one that is not, both beyond the vocabulary.
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<odd>", special=False)])
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    made = TextTokenizer.of(tokenizer)
    assert made.prompt.get_vocab(with_added_tokens=True) == copy.get_vocab(with_added_tokens=True)
    copy.encode_special_tokens = True
    for text in TEXTS:
        wanted, found = copy.encode(text), made.prompt.encode(text)
        assert (found.ids, found.offsets, found.special_tokens_mask) == (
            wanted.ids,
            wanted.offsets,
            wanted.special_tokens_mask,
        )
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert turn in made.template.encode("<turn>price").ids
    assert turn not in made.continuation.encode("<turn>price").ids
