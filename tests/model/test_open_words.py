"""Words that are read before they have ended: what stands for them at each place, and that nothing of it leaks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calm_graph import Augmenter, Composition, every
from calm_graph.errors import DeclarationError
from calm_graph.model.alignment import TextReader
from calm_graph.model.segments import SegmentStream
from calm_graph.model.tokens import NEVER, Tokens
from calm_graph.plan.graph import make_plan
from registry.layouts import LAYOUTS
from tests.model.cases import ATTACH, compose, decoding_batch
from tests.model.pico import Zoo
from tests.model.test_alignment import ANCHORS, BACKENDS, anchor_tokens, ids, ids_of_anchor
from tests.model.test_alignment import AUGMENTERS as TOKENIZERS
from tests.model.test_architectures import check_augmenter_matters_and_learns, check_cached_equals_full
from tests.model.text import cuts

pairs = pytest.mark.parametrize("anchor, augmenter", [("bytes", "spaces"), ("bytes", "words"), ("words", "metaspace")])


class Reading:
    """A reader of one row, with all that it has said so far."""

    def __init__(self, anchor: str, augmenter: str, prompt: Sequence[int]) -> None:
        self.reader = TextReader(
            anchor_bytes=ANCHORS[anchor],
            tokenizer=TOKENIZERS[augmenter],
            streams=True,
            template=None,
            open_words="read",
        )
        self.reader.begin(anchor_tokens([prompt]), [None])
        self.num_read = len(prompt)
        self.known: Tokens | None = None

    def push(self, completion: Sequence[int]) -> None:
        new, withdrawn_at = self.reader.push(anchor_tokens([completion], after=[self.num_read]))
        self.num_read += len(completion)
        if self.known is None:
            assert not (withdrawn_at != NEVER).any(), "there was nothing"
            self.known = new
            return
        known, left = self.known.withdraw(withdrawn_at)
        assert not (left != NEVER).any(), "more was withdrawn than stood"
        self.known = known.then(new)

    def at(self, place: int) -> list[int]:
        """What stands at an anchor position."""
        assert self.known is not None
        stands = (self.known.known_at_BS <= place) & (place < self.known.withdrawn_at_BS)
        return self.known.ids_BS[stands].tolist()


def expected(anchor: str, augmenter: str, completion: Sequence[int]) -> list[int]:
    """The slow way: every word so far as if the text ended here."""
    stream = SegmentStream()
    segments = [*stream.push(b"".join(ANCHORS[anchor](completion))), stream.open]
    return [id for segment in segments for id in TOKENIZERS[augmenter].encode_segments([segment])[0]]


@pairs
@given(prompt=ids_of_anchor, completion=ids_of_anchor, data=st.data())
def test_at_each_place_the_text_so_far_stands_as_if_it_ended_there(
    anchor: str, augmenter: str, prompt: list[int], completion: list[int], data: st.DataObject
) -> None:
    reading = Reading(anchor, augmenter, prompt)
    for piece in data.draw(cuts(len(completion))):
        reading.push(completion[piece])
    for length in range(1, len(completion) + 1):
        assert reading.at(len(prompt) + length - 1) == expected(anchor, augmenter, completion[:length])


@given(completion=ids_of_anchor, tail=ids_of_anchor, dropped=st.integers(0, 16))
def test_dropping_the_last_tokens_is_never_having_read_them(
    completion: list[int], tail: list[int], dropped: int
) -> None:
    dropped = min(dropped, len(completion))
    kept = completion[: len(completion) - dropped]
    reading = Reading("bytes", "spaces", [5])
    reading.push(completion)
    reading.reader.drop_last(dropped)
    assert reading.known is not None
    reading.known = reading.known.known_by(torch.tensor([len(kept)]))
    reading.num_read = 1 + len(kept)
    reading.push(tail)
    for length in range(1, len(tail) + 1):
        assert reading.at(len(kept) + length) == expected("bytes", "spaces", [*kept, *tail[:length]])


def test_a_worked_example() -> None:
    reading = Reading("bytes", "spaces", ids("Hello"))
    start = reading.num_read
    pieces = [ids(" wor"), ids("ld"), ids(",")]
    for piece in pieces:
        reading.push(piece)
    spell = BACKENDS["spaces"].id_to_token
    shown = ["".join(spell(id) for id in reading.at(place)) for place in range(start, reading.num_read)]
    ends = [len(piece) for piece in pieces]
    assert [shown[ends[0] - 1], shown[ends[0] + ends[1] - 1], shown[-1]] == ["▁wor", "▁world", "▁world,"]


def test_the_end_of_a_word_is_seen_at_once_and_nothing_later(zoo: Zoo) -> None:
    model = compose(zoo, "open")
    ids_BT, mask, lengths, width = decoding_batch(model)
    changed = ids_BT.clone()
    changed[:, width + 5 :] = changed[:, width + 5 :].flip(0)
    with torch.no_grad():
        one, two = (model(each, mask, prompt_lengths=lengths).logits for each in (ids_BT, changed))
        waiting = zoo.compose(Augmenter("other", attach=ATTACH))
        waiting.load_state_dict(model.state_dict())
        late = waiting(ids_BT, mask, prompt_lengths=lengths).logits
    torch.testing.assert_close(one[:, : width + 5], two[:, : width + 5], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[:, width - 1], late[:, width - 1], atol=1e-5, rtol=1e-5)
    assert (one[:, width:] - late[:, width:]).abs().amax(dim=-1).amin(dim=1).min() > 1e-4


TAKE_PAIRS = [
    name
    for name, layout in LAYOUTS.items()
    # gemma3 is a wrapper, loaded as the gemma3_text inside it.
    if layout.causal and layout.modality == "text" and layout.pairwise_masks and name != "gemma3"
]


KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("architectures"))
    for seed, architecture in enumerate((*TAKE_PAIRS, "bloom")):
        zoo.add(architecture, architecture, tokenizer="bytes", seed=seed)
    zoo.add("some-windows", "gemma3_text", tokenizer="bytes", seed=98, sliding_window=5, layer_types=KINDS)
    zoo.add("reading", "llama", tokenizer="spaces", seed=99)
    return zoo


@pytest.mark.parametrize("architecture", [*TAKE_PAIRS, "some-windows"])
def test_every_architecture(architectures: Zoo, architecture: str) -> None:
    reads = Augmenter(architecture, attach=every(2), open_words="read")
    model = architectures.compose(reads, anchor="reading")
    check_cached_equals_full(model)
    check_augmenter_matters_and_learns(model)


@pytest.mark.parametrize(
    "augmenter, why",
    [
        (Augmenter("bloom", attach=every(2), open_words="read"), "'bloom' is a bloom model, from which no single"),
        (Augmenter("llama", attach=every(2), reading="prompt", open_words="read"), "a prompt is whole, so it has no"),
    ],
)
def test_what_cannot_read_open_words_is_refused(architectures: Zoo, augmenter: Augmenter, why: str) -> None:
    composition = Composition(name="c", anchor="reading", augmenters=[augmenter])
    with pytest.raises(DeclarationError, match=rf"augmenters\[0\].open_words: got 'read', but {why}.*use 'wait'"):
        make_plan(composition, registry=architectures.registry)
