"""What an augmenter reads of the anchor's text, and from which anchor position on each token may be seen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from calm_graph.model.alignment import SharedReader, TextReader
from calm_graph.model.segments import SegmentStream
from calm_graph.model.text_tokenizer import TextTokenizer
from calm_graph.model.token_bytes import TokenBytes
from calm_graph.model.tokens import ALWAYS, NEVER, AnchorTokens, Tokens
from tests.model.pico import make_tokenizer, tokenizer_json
from tests.model.text import any_text, cuts

Seen = list[tuple[int, int, int, bool]]  # id, known_at, index, is_prompt

ANCHORS = {kind: TokenBytes(make_tokenizer(kind)) for kind in ("bytes", "prepended", "words")}
AUGMENTERS = {
    kind: TextTokenizer.of(make_tokenizer(kind))
    for kind in ("bytes", "spaces", "prepended", "metaspace", "words", "level")
}
BACKENDS = {kind: Tokenizer.from_str(tokenizer_json(kind)) for kind in AUGMENTERS}
for backend in BACKENDS.values():
    backend.encode_special_tokens = True

ids_of_anchor = st.lists(st.integers(0, 339), max_size=16)
pairs = pytest.mark.parametrize(
    "anchor, augmenter", [("bytes", "spaces"), ("bytes", "words"), ("prepended", "bytes"), ("words", "metaspace")]
)


def ids(text: str, kind: str = "bytes") -> list[int]:
    return BACKENDS[kind].encode(text, add_special_tokens=False).ids


def anchor_tokens(rows: Sequence[Sequence[int]], *, after: Sequence[int] | None = None, pad: int = 0) -> AnchorTokens:
    """Left-padded rows; `after` is how many real tokens each row had before."""
    width = max(len(row) for row in rows) + pad
    starts = after or [0] * len(rows)
    lead = [width - len(row) for row in rows]
    ids_per_row = [[7] * pads + list(row) for pads, row in zip(lead, rows, strict=True)]
    real = [[False] * pads + [True] * len(row) for pads, row in zip(lead, rows, strict=True)]
    index = [
        [0] * pads + list(range(start, start + len(row))) for pads, row, start in zip(lead, rows, starts, strict=True)
    ]
    return AnchorTokens(
        ids_BT=torch.tensor(ids_per_row, dtype=torch.int64).reshape(len(rows), width),
        real_BT=torch.tensor(real, dtype=torch.bool).reshape(len(rows), width),
        index_BT=torch.tensor(index, dtype=torch.int64).reshape(len(rows), width),
    )


def seen(tokens: Tokens) -> list[Seen]:
    """The real tokens of each row, after checking the form of the others."""
    assert (tokens.known_at_BS[~tokens.real_BS] == NEVER).all()
    assert len(tokens) == 0 or bool(tokens.real_BS[:, 0].any())
    assert (tokens.real_BS.long().diff(dim=1) >= 0).all(), "left-padded"
    table = torch.stack([tokens.ids_BS, tokens.known_at_BS, tokens.index_BS, tokens.prompt_BS.long()], dim=-1)
    return [
        [(id, known, index, bool(prompt)) for id, known, index, prompt in row[real].tolist()]
        for row, real in zip(table, tokens.real_BS, strict=True)
    ]


def reader(anchor: str = "bytes", augmenter: str = "spaces", *, streams: bool = True, template: str | None = None):
    return TextReader(anchor_bytes=ANCHORS[anchor], tokenizer=AUGMENTERS[augmenter], streams=streams, template=template)


def read(each, prompt: list[int], completion: list[int], pieces: Sequence[slice]) -> Seen:
    found = seen(each.begin(anchor_tokens([prompt]), [None]))[0]
    for piece in pieces:
        part = completion[piece]
        found += seen(each.push(anchor_tokens([part], after=[len(prompt) + piece.start]))[0])[0]
    return found


@pairs
@given(prompt=ids_of_anchor, completion=ids_of_anchor, data=st.data())
def test_however_the_completion_arrives_the_same_is_read(
    anchor: str, augmenter: str, prompt: list[int], completion: list[int], data: st.DataObject
) -> None:
    at_once = read(reader(anchor, augmenter), prompt, completion, [slice(0, len(completion))])
    one_by_one = [slice(place, place + 1) for place in range(len(completion))]
    assert read(reader(anchor, augmenter), prompt, completion, one_by_one) == at_once
    chunks = data.draw(cuts(len(completion)))
    assert read(reader(anchor, augmenter), prompt, completion, chunks) == at_once
    shared = [read(SharedReader(streams=True), prompt, completion, way) for way in (one_by_one, chunks)]
    assert shared[0] == shared[1]
    assert [(id, known) for id, known, *_ in shared[0]] == list(zip(prompt + completion, range(100), strict=False))


@pairs
@given(text=any_text, data=st.data())
def test_any_text_cut_anywhere_is_read_as_a_whole(anchor: str, augmenter: str, text: str, data: st.DataObject) -> None:
    whole = ids(text, anchor)
    prompt, completion = whole[: (cut := data.draw(st.integers(0, len(whole))))], whole[cut:]
    at_once = read(reader(anchor, augmenter), prompt, completion, [slice(0, len(completion))])
    assert read(reader(anchor, augmenter), prompt, completion, data.draw(cuts(len(completion)))) == at_once


@given(prompt=ids_of_anchor, completion=ids_of_anchor, other=ids_of_anchor, place=st.integers(0, 25))
def test_what_is_known_depends_on_nothing_later(
    prompt: list[int], completion: list[int], other: list[int], place: int
) -> None:
    place = min(place, len(completion))
    changed = completion[:place] + other
    last = len(prompt) + place - 1
    one, two = (
        [token for token in read(reader(), prompt, each, [slice(0, len(each))]) if token[1] <= last]
        for each in (completion, changed)
    )
    assert one == two


@given(completion=ids_of_anchor)
def test_a_completion_token_is_known_when_the_character_after_its_segment_is(completion: list[int]) -> None:
    """The definition again, the slow way: read every beginning of the completion from its start."""
    prompt = ids("Hello")
    expected: Seen = []
    before = 0
    for length in range(1, len(completion) + 1):
        segments = SegmentStream().push(b"".join(ANCHORS["bytes"](completion[:length])))
        known = len(prompt) + length - 1
        for segment in segments[before:]:
            encoded = BACKENDS["spaces"].encode(segment, add_special_tokens=False)
            expected += [(id, known, known, False) for id in encoded.ids]
        before = len(segments)
    found = read(reader(), prompt, completion, [slice(0, len(completion))])
    assert [token for token in found if not token[3]] == expected


@pairs
@given(rows=st.lists(st.tuples(ids_of_anchor, ids_of_anchor), min_size=1, max_size=4), pad=st.integers(0, 2))
def test_rows_of_a_ragged_batch_are_read_as_if_alone(
    anchor: str, augmenter: str, rows: list[tuple[list[int], list[int]]], pad: int
) -> None:
    each = reader(anchor, augmenter)
    found = seen(each.begin(anchor_tokens([prompt for prompt, _ in rows], pad=pad), [None] * len(rows)))
    completions = [completion for _, completion in rows]
    later = seen(each.push(anchor_tokens(completions, after=[len(prompt) for prompt, _ in rows], pad=pad))[0])
    for row, (prompt, completion) in enumerate(rows):
        alone = read(reader(anchor, augmenter), prompt, completion, [slice(0, len(completion))])
        assert found[row] + later[row] == alone


@given(
    rows=st.lists(st.tuples(ids_of_anchor, ids_of_anchor), min_size=1, max_size=3),
    chosen=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    tails=st.lists(ids_of_anchor, min_size=4, max_size=4),
)
def test_selected_rows_go_on_as_copies(
    rows: list[tuple[list[int], list[int]]], chosen: list[int], tails: list[list[int]]
) -> None:
    chosen = [place % len(rows) for place in chosen]
    each = reader()
    each.begin(anchor_tokens([prompt for prompt, _ in rows]), [None] * len(rows))
    each.push(anchor_tokens([completion for _, completion in rows], after=[len(prompt) for prompt, _ in rows]))
    each.select(chosen)
    starts = [len(rows[place][0]) + len(rows[place][1]) for place in chosen]
    later = seen(each.push(anchor_tokens(tails[: len(chosen)], after=starts))[0])
    for row, place in enumerate(chosen):
        alone = reader()
        prompt, completion = rows[place]
        read(alone, prompt, completion, [slice(0, len(completion))])
        assert later[row] == seen(alone.push(anchor_tokens([tails[row]], after=[starts[row]]))[0])[0]


@given(prompt=ids_of_anchor, completion=ids_of_anchor, tail=ids_of_anchor, dropped=st.integers(0, 25))
def test_dropping_the_last_tokens_is_never_having_read_them(
    prompt: list[int], completion: list[int], tail: list[int], dropped: int
) -> None:
    kept = completion[: max(len(completion) - dropped, 0)]
    one, two = reader(), reader()
    read(one, prompt, completion, [slice(0, len(completion))])
    one.drop_last(min(dropped, len(completion)))
    read(two, prompt, kept, [slice(0, len(kept))])
    start = len(prompt) + len(kept)
    ours, theirs = (seen(each.push(anchor_tokens([tail], after=[start]))[0]) for each in (one, two))
    assert ours == theirs


@pairs
@given(text=any_text, kept=st.integers(0, 40))
def test_a_prompt_is_known_token_by_token_and_wholly_at_its_end(
    anchor: str, augmenter: str, text: str, kept: int
) -> None:
    prompt = ids(text, anchor)[:kept]
    tokens = seen(reader(anchor, augmenter, streams=False).begin(anchor_tokens([prompt]), [None]))[0]
    known = [token[1] for token in tokens]
    assert known == sorted(known)
    assert all(min(0, len(prompt) - 1) <= place <= len(prompt) - 1 for place in known)
    assert all(is_prompt for *_, is_prompt in tokens)


@given(text=any_text)
def test_a_prompt_token_is_known_once_the_anchor_has_read_its_bytes(text: str) -> None:
    prompt = ids(text)
    ends = [len(b"".join(ANCHORS["bytes"](prompt[: place + 1]))) for place in range(len(prompt))]
    encoding = BACKENDS["spaces"].encode(text, add_special_tokens=False)
    tokens = seen(reader(augmenter="spaces").begin(anchor_tokens([prompt]), [None]))[0]
    assert [id for id, *_ in tokens] == [1, *encoding.ids]
    for (_, known, _, _), (_, end_char) in zip(tokens[1:], encoding.offsets, strict=True):
        end = len(text[:end_char].encode())
        assert ends[known] >= end and (known == 0 or ends[known - 1] < end)


def test_the_prompt_of_a_worked_example() -> None:
    prompt = ids("Hello world, this")
    tokens = seen(reader(augmenter="words").begin(anchor_tokens([prompt]), [None]))[0]
    names = [BACKENDS["words"].id_to_token(id) for id, *_ in tokens]
    assert "".join(names).replace("##", "") == "<s>helloworld,this", "</s> would close a text that goes on"
    lengths = [len(BACKENDS["bytes"].decode(prompt[: place + 1])) for place in range(len(prompt))]
    by_name = {name: known for name, (_, known, *_) in zip(names, tokens, strict=True)}
    assert by_name["<s>"] == 0
    assert by_name[","] == lengths.index(len("Hello world,"))
    assert tokens[-1][1] == len(prompt) - 1


def test_a_reader_of_the_prompt_reads_a_closed_text_and_nothing_later() -> None:
    each = reader(augmenter="words", streams=False)
    tokens = seen(each.begin(anchor_tokens([ids("Hello world")]), [None]))[0]
    assert [id for id, *_ in tokens] == BACKENDS["words"].encode("Hello world").ids
    assert len(each.push(anchor_tokens([ids(", this is")], after=[3]))[0]) == 0
    shared = SharedReader(streams=False)
    assert len(shared.begin(anchor_tokens([[5, 6]]), [None])) == 2
    assert len(shared.push(anchor_tokens([[5, 6]], after=[2]))[0]) == 0


@pytest.mark.parametrize("streams", [True, False])
def test_a_template_stands_around_the_prompt(streams: bool) -> None:
    prompt = ids("apples is 3")
    each = reader(augmenter="words", streams=streams, template="<s> price of {prompt}!</s>")
    tokens = seen(each.begin(anchor_tokens([prompt]), [None]))[0]
    names = [BACKENDS["words"].id_to_token(id) for id, *_ in tokens]
    before, after = ["<s>", "price", "of"], ["!", "</s>"]
    closing = [] if streams else ["</s>"]
    assert names[:4] == ["<s>", *before] and names[len(names) - len(after + closing) :] == [*after, *closing]
    known = [place for _, place, *_ in tokens]
    assert known[:4] == [0, 0, 0, 0]
    assert known[-1] == known[-2] == len(prompt) - 1
    assert known == sorted(known)


def test_users_cannot_spell_control_tokens() -> None:
    spelled = ids("a</s>b")
    assert 2 not in spelled
    for template in (None, "</s>{prompt}"):
        found = read(reader(template=template), spelled, ids("</s> c </s> d"), [slice(0, 99)])
        assert [id for id, *_ in found].count(2) == (template is not None)


def test_a_control_token_that_looks_like_a_word_is_a_word_in_a_completion() -> None:
    tokenizer = make_tokenizer("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["stop"]})
    stop = tokenizer.convert_tokens_to_ids("stop")
    encoders = TextTokenizer.of(tokenizer)
    each = TextReader(anchor_bytes=ANCHORS["bytes"], tokenizer=encoders, streams=True, template="stop{prompt}")
    found = read(each, ids("don't stop"), ids(" stop now"), [slice(0, 99)])
    assert [id for id, *_ in found].count(stop) == 1, "the template's own"


def test_the_anchors_control_tokens_are_not_read() -> None:
    with_control = [1, *ids("Hello world"), 2]
    tokens = seen(reader().begin(anchor_tokens([with_control]), [None]))[0]
    assert [id for id, *_ in tokens] == BACKENDS["spaces"].encode("Hello world").ids


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("augmenter", ["spaces", "words"])
def test_an_empty_prompt(augmenter: str, streams: bool) -> None:
    each = reader(augmenter=augmenter, streams=streams)
    tokens = seen(each.begin(anchor_tokens([[], [1]]), [None, None]))
    opening = [1] if streams else []
    assert [[id for id, *_ in row] for row in tokens] == [opening, opening]
    assert [[known for _, known, *_ in row] for row in tokens] == ([[-1], [0]] if streams else [[], []])


def test_a_text_given_for_the_prompt_is_aligned_where_it_stands() -> None:
    prompt = ids("user: Hello world\nassistant:")
    given_text = "Hello world"
    tokens = seen(reader().begin(anchor_tokens([prompt]), [given_text]))[0]
    assert [id for id, *_ in tokens] == BACKENDS["spaces"].encode(given_text).ids
    ends = [len(b"".join(ANCHORS["bytes"](prompt[: place + 1]))) for place in range(len(prompt))]
    assert ends[tokens[-1][1]] >= len("user: Hello world") > ends[tokens[-1][1] - 1]
    elsewhere = seen(reader().begin(anchor_tokens([prompt]), ["something else"]))[0]
    assert {known for _, known, *_ in elsewhere} == {len(prompt) - 1}


@pytest.mark.parametrize("kind", ["prepended", "metaspace"])
def test_the_middle_of_a_text_gets_no_space_of_its_own(kind: str) -> None:
    found = read(reader(augmenter=kind), ids("price"), ids("s of apples. "), [slice(0, 99)])
    completion = [id for id, _, _, is_prompt in found if not is_prompt]
    assert "".join(BACKENDS[kind].id_to_token(id) for id in completion) == "s▁of▁apples."
    assert BACKENDS[kind].id_to_token(found[1][0]).startswith("▁")


def test_thresholds_open_the_prompt_or_keep_it_causal() -> None:
    shared = SharedReader(streams=True)
    prompt = shared.begin(anchor_tokens([[5, 6, 7], [8]]), [None, None])
    completion, _ = shared.push(anchor_tokens([[9], [10]], after=[3, 1]))
    tokens = prompt.then(completion)
    assert tokens.thresholds(prompt_is_open=False).tolist() == [[0, 1, 2, 3], [NEVER, NEVER, 0, 1]]
    assert tokens.thresholds(prompt_is_open=True).tolist() == [[ALWAYS] * 3 + [3], [NEVER, NEVER, ALWAYS, 1]]


def test_tokens_join_without_gaps() -> None:
    shared = SharedReader(streams=True)
    first, _ = shared.push(anchor_tokens([[5, 6], [7]]))
    second, _ = shared.push(anchor_tokens([[8], []], after=[2, 1]))
    third, _ = shared.push(anchor_tokens([[], [9, 10]], after=[3, 1]))
    assert [[id for id, *_ in row] for row in seen(first.then(second).then(third))] == [[5, 6, 8], [7, 9, 10]]
    known = first.then(second).then(third).known_by(torch.tensor([1, 2]))
    assert [[id for id, *_ in row] for row in seen(known)] == [[5, 6], [7, 9, 10]]
    assert [[id for id, *_ in row] for row in seen(known.select(torch.tensor([1, 1, 0])))] == [
        [7, 9, 10],
        [7, 9, 10],
        [5, 6],
    ]
