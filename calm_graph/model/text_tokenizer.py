"""An augmenter's tokenizer for the three places where it meets text: a prompt, a template, and what follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import Encoding, Tokenizer

from calm_graph.model.token_bytes import backend_of, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizer:
    """An augmenter's tokenizer as three encoders: the prompt, what a template puts around it, and what follows.

    Text of users is encoded as text even where it spells a control token; a template may spell them on purpose.
    """

    prompt: Tokenizer
    template: Tokenizer
    continuation: Tokenizer

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextTokenizer:
        """Build the encoders from a fast tokenizer.

        Raises:
            InputError: If it has no fast backend.
        """
        backend, parts = backend_of(tokenizer), parts_of(tokenizer)
        inner = _without_first_space(parts)
        prompt, template, continuation = (_like(backend, each) for each in (parts, inner, inner))
        prompt.encode_special_tokens = continuation.encode_special_tokens = True
        return cls(prompt=prompt, template=template, continuation=continuation)

    def encode_prompt(self, text: str, *, template: str | None, goes_on: bool) -> tuple[list[int], list[int]]:
        """Encode a prompt whole, with the control tokens that the tokenizer puts around a text.

        Args:
            text: The prompt.
            template: Text around it, with `{prompt}` where it goes.
            goes_on: The completion will follow, so control tokens that close a text are left out.

        Returns:
            Token ids and, for each, the byte of `text` at which it ends: 0 for what stands before the text.
        """
        encoding = self.prompt.encode(text)
        byte_at = [0]
        for char in text:
            byte_at.append(byte_at[-1] + len(char.encode()))
        lead, num_closing = self._around(encoding)
        tail = len(encoding.ids) - num_closing
        before, after = (self.template.encode(part, add_special_tokens=False).ids for part in _around(template))
        closing = [] if goes_on else encoding.ids[tail:]
        ids = [*encoding.ids[:lead], *before, *encoding.ids[lead:tail], *after, *closing]
        own_ends = [byte_at[end] for _, end in encoding.offsets[lead:tail]]
        return ids, [0] * (lead + len(before)) + own_ends + [byte_at[-1]] * (len(after) + len(closing))

    def encode_segments(self, segments: list[str]) -> list[list[int]]:
        """Encode pieces of a text, each on its own: token ids of each."""
        return [each.ids for each in self.continuation.encode_batch_fast(segments, add_special_tokens=False)]

    def _around(self, encoding: Encoding) -> tuple[int, int]:
        """Count the control tokens before and after the text's own tokens."""
        for shown in (encoding, self.prompt.encode("a")):  # a text without tokens does not show which of them close it
            is_own = [not special for special in shown.special_tokens_mask]
            if any(is_own):
                return is_own.index(True), is_own[::-1].index(True)
        return len(encoding.ids), 0


def _like(backend: Tokenizer, parts: dict[str, object]) -> Tokenizer:
    """The same vocabulary, which is shared and not copied, with these parts; it neither pads nor cuts."""
    made, described = Tokenizer(backend.model), Tokenizer.from_str(json.dumps(parts))
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(described, name)) is not None:
            setattr(made, name, part)
    made.add_tokens([token for _, token in sorted(backend.get_added_tokens_decoder().items())])
    return made


def _around(template: str | None) -> tuple[str, str]:
    before, _, after = (template or "{prompt}").partition("{prompt}")
    return before, after


def _without_first_space(specification: dict[str, object]) -> dict[str, object]:
    """The same tokenizer for text in the middle: without the space that some put before the first word."""

    def clean(node: object) -> object:
        if isinstance(node, list):
            return [clean(item) for item in node if not (isinstance(item, dict) and item.get("type") == "Prepend")]
        if isinstance(node, dict):
            node = {key: clean(value) for key, value in node.items()}
            if node.get("type") == "Metaspace":
                node["prepend_scheme"] = "never"
            if node.get("type") == "ByteLevel" and "add_prefix_space" in node:
                node["add_prefix_space"] = False
        return node

    cleaned = dict(specification)
    for part in ("normalizer", "pre_tokenizer"):
        node = cleaned.get(part)
        is_prepend = isinstance(node, dict) and node.get("type") == "Prepend"
        cleaned[part] = None if is_prepend else clean(node)
    return cleaned
