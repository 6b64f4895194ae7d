"""The bytes of text that each token of a tokenizer stands for, whatever stands around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from calm_graph.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METASPACE = "\u2581"


class TokenBytes:
    """Token id -> bytes, so that text offsets add up token by token and a cut never changes what came before.

    Control tokens (beginning of text, turn marks) stand for no bytes: an augmenter reads the text of the messages,
    not the anchor's control tokens.

    Args:
        tokenizer: A fast tokenizer.

    Raises:
        InputError: If the tokenizer has no fast backend or a decoder whose bytes depend on neighbouring tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        steps = _steps(parts_of(tokenizer).get("decoder"))
        names = {step["type"] for step in steps}
        unknown = names - _KNOWN_STEPS
        if unknown:
            raise InputError(
                f"tokenizer of {tokenizer.name_or_path!r}: decoder {sorted(unknown)} is not one of "
                f"{sorted(_KNOWN_STEPS)}; give the augmenters' text with prompt_texts=, or use reading='prompt' on them"
            )
        byte_level = "ByteLevel" in names
        self._drops_first_space = not steps or any(_drops_first_space(step) for step in steps)
        added = backend_of(tokenizer).get_added_tokens_decoder()
        control = set(tokenizer.all_special_ids) | {id for id, token in added.items() if token.special}
        vocabulary = tokenizer.get_vocab()
        self._table: list[bytes] = [b""] * (max([*vocabulary.values(), *added, -1]) + 1)
        for piece, id in vocabulary.items():
            if id in control:
                continue
            if id in added:
                self._table[id] = piece.encode()
            elif byte_level:
                self._table[id] = bytes(_BYTE_OF[char] for char in piece if char in _BYTE_OF)
            else:
                self._table[id] = _piece_bytes(piece, steps)

    def __call__(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token, in the middle of a text."""
        return [self._table[id] if 0 <= id < len(self._table) else b"" for id in ids]

    def text(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token, where the first one begins the text."""
        pieces = self(ids)
        if self._drops_first_space:
            for place, piece in enumerate(pieces):
                if piece:
                    pieces[place] = piece.removeprefix(b" ")
                    break
        return pieces


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The fast tokenizer inside.

    Raises:
        InputError: If it has no fast backend.
    """
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer of {tokenizer.name_or_path!r} is {type(tokenizer).__name__}, which has no fast backend; "
            "save it as tokenizer.json (transformers converts most) and point the card at that folder"
        )
    return backend


def parts_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer's own description, as in tokenizer.json, without its vocabulary, which may be 30 MB.

    Raises:
        InputError: If it has no fast backend.
    """
    backend, empty = backend_of(tokenizer), Tokenizer(BPE())
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (part := getattr(backend, name)) is not None:
            setattr(empty, name, part)
    parts: dict[str, Any] = json.loads(empty.to_str())
    return parts


_KNOWN_STEPS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder"}

# What the decoder of WordPiece undoes, token by token (tokenizers, decoders/wordpiece.rs).
_CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _steps(inner)]
    return [decoder]


def _drops_first_space(step: dict[str, Any]) -> bool:
    """Whether a decoder that puts a space before every word drops the one before the first."""
    match step["type"]:
        case "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
        case "Strip":
            return bool(step["content"] == " " and step["start"])
    return bool(step["type"] == "WordPiece")


def _piece_bytes(piece: str, steps: list[dict[str, Any]]) -> bytes:
    if not steps:  # tokenizers joins pieces with spaces where there is no decoder
        return b" " + piece.encode()
    for step in steps:
        match step["type"]:
            case "ByteFallback" if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)])
            case "Replace" if "String" in step["pattern"]:
                piece = piece.replace(step["pattern"]["String"], step["content"])
            case "Metaspace":
                piece = piece.replace(step.get("replacement", METASPACE), " ")
            case "WordPiece":
                prefix = step.get("prefix", "##")
                piece = piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece
                if step.get("cleanup", True):
                    for spaced, written in _CLEANUP:
                        piece = piece.replace(spaced, written)
            case "BPEDecoder":
                piece = piece.replace(step.get("suffix", "</w>"), " ")
    return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    for place, byte in enumerate(byte for byte in range(256) if byte not in printable):
        alphabet[chr(256 + place)] = byte
    return alphabet


_BYTE_OF = _byte_alphabet()
