"""Strategies for text of every kind."""

from __future__ import annotations

from hypothesis import strategies as st

FRAGMENTS = (
    *("Hello", " world", "don't", " 12", "345", "\n", "\n\n", "\r\n", "  ", "\t", "...", "?!", " (", ")", "=", "x+y=z"),
    *("你好", "，", "世界", "\u3000", "한국어", "ภาษาไทย", "नमस्ते", "שלום", "é", "e\u0301", "\u0301", "İ", "ß", "ﬁ"),
    *("’s", "_", "😀", "👩\u200d👩\u200d👧", "🇨🇭", "\u200d", "\ufeff", "\x00", "\U0010ffff"),
    *("<s>", "</s>", "##", "▁", "<0x41>", "a" * 60),
)

any_text = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=12
).map("".join)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """Consecutive pieces of something of this length, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, length), max_size=8)))
    return [slice(start, end) for start, end in zip([0, *places], [*places, length], strict=True)]
