"""However the bytes of a text arrive, the same segments become final."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_graph.model.segments import MAX_SEGMENT_CHARS, SegmentStream, is_boundary
from tests.model.text import any_text, cuts


def open_rest(stream: SegmentStream) -> bytes:
    """What is not final yet: the open characters and the bytes of a character that is not whole."""
    return "".join(stream._open).encode() + stream._decoder.getstate()[0]


def split(text: str) -> tuple[list[str], str]:
    stream = SegmentStream()
    return stream.push(text.encode()), open_rest(stream).decode()


@given(text=any_text, data=st.data())
def test_every_cut_gives_the_segments_of_the_whole(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    whole, rest = split(text)
    stream = SegmentStream()
    found = [segment for piece in data.draw(cuts(len(encoded))) for segment in stream.push(encoded[piece])]
    assert found == whole
    assert open_rest(stream).decode() == rest


@given(text=any_text)
def test_byte_by_byte_gives_the_segments_of_the_whole(text: str) -> None:
    stream = SegmentStream()
    found = [segment for byte in text.encode() for segment in stream.push(bytes([byte]))]
    assert (found, open_rest(stream).decode()) == split(text)


@given(data=st.binary(max_size=40), more=st.data())
def test_bytes_that_are_no_text_are_cut_in_the_same_way_too(data: bytes, more: st.DataObject) -> None:
    whole, pieces = SegmentStream(), SegmentStream()
    expected = whole.push(data)
    found = [segment for piece in more.draw(cuts(len(data))) for segment in pieces.push(data[piece])]
    assert found == expected
    assert open_rest(pieces) == open_rest(whole)


@given(text=any_text)
def test_segments_and_the_open_rest_are_the_text(text: str) -> None:
    segments, rest = split(text)
    assert "".join(segments) + rest == text
    assert all(0 < len(segment) <= MAX_SEGMENT_CHARS for segment in segments)


@given(text=any_text, later=any_text)
def test_what_is_final_never_changes(text: str, later: str) -> None:
    before, _ = split(text)
    after, _ = split(text + later)
    assert after[: len(before)] == before


@given(text=any_text, one=any_text, two=any_text)
def test_a_copy_goes_on_by_itself(text: str, one: str, two: str) -> None:
    encoded = (text + "é").encode()[:-1]  # in the middle of a character
    stream = SegmentStream()
    stream.push(encoded)
    twin = stream.copy()
    for each, tail in ((stream, one), (twin, two)):
        alone = SegmentStream()
        alone.push(encoded)
        assert each.push(tail.encode()) == alone.push(tail.encode())
        assert open_rest(each) == open_rest(alone)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello world, ok?", ["Hello", " world", ",", " ok"]),
        ("price of 12 apples", ["price", " of", " 12"]),
        ("don't stop", ["don", "'t"]),
        ("a\n\nb c", ["a", "\n\nb"]),
        ("x = 1; y", ["x", " =", " 1", ";"]),
        ("e\u0301t e", ["e\u0301t"]),
        ("你好，世界。再", ["你好", "，世界"]),
    ],
)
def test_where_segments_end(text: str, expected: list[str]) -> None:
    assert split(text)[0] == expected


def test_a_script_without_spaces_is_not_held_back() -> None:
    segments, rest = split("ก" * 100)
    assert [len(segment) for segment in segments] == [MAX_SEGMENT_CHARS, MAX_SEGMENT_CHARS]
    assert len(rest) == 4


def test_marks_belong_to_their_letter() -> None:
    assert not is_boundary("न", "म")
    assert not is_boundary("ม", "\u0e48")
    assert is_boundary("a", " ") and is_boundary("a", "'") and is_boundary(".", " ")
    assert not is_boundary(" ", "a") and not is_boundary(".", "\n")
