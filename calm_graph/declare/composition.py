"""What a user declares: an anchor, the augmenters it reads, and where their attachments sit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictInt, Tag

from calm_graph.declare.base import Declared

Reading = Literal["prompt", "stream"]
PromptVisibility = Literal["full", "causal"]
Gate = Literal["none", "tanh"]
Positions = Literal["none", "rotary", "distance"]
OpenWords = Literal["wait", "read"]
Writes = Literal["absolute", "relative"]
FirstToken = Literal["write", "spare"]
Norms = Literal["rms", "none"]
Runtime = Literal["torch", "onnx", "remote"]
IfUnavailable = Literal["fail", "skip"]


class Attachment(Declared):
    """One trainable block: the anchor attends, after one of its layers, to the states of one augmenter layer.

    Args:
        augmenter_layer: The augmenter's layer that is read, 0-based: the output of that block.
        anchor_layer: The anchor's layer after which the result is added, 0-based.
        num_heads: Attention heads of this block; None takes the augmenter's `num_heads`, then the anchor's own.
    """

    augmenter_layer: StrictInt
    anchor_layer: StrictInt
    num_heads: StrictInt | None = None


class Every(Declared):
    """The paper's placement: every `step`-th augmenter layer, spread evenly over the anchor (section 3.1)."""

    kind: Literal["every"] = "every"
    step: StrictInt


class At(Declared):
    """Placement at named anchor layers; the i-th of them meets the i-th augmenter layer.

    Args:
        anchor_layers: The anchor's layers, 0-based.
        augmenter_layers: As many augmenter layers; None spreads them evenly over the augmenter.
    """

    kind: Literal["at"] = "at"
    anchor_layers: tuple[StrictInt, ...]
    augmenter_layers: tuple[StrictInt, ...] | None = None


def every(step: int) -> Every:
    """Attach every `step`-th augmenter layer, spread evenly over the anchor; the paper's choice is `every(4)`."""
    return Every(step=step)


def at(*, anchor_layers: Sequence[int], augmenter_layers: Sequence[int] | None = None) -> At:
    """Attach after these anchor layers; the augmenter's layers are spread evenly unless they are named too."""
    chosen = None if augmenter_layers is None else tuple(augmenter_layers)
    return At(anchor_layers=tuple(anchor_layers), augmenter_layers=chosen)


def _attach_tag(value: object) -> str:
    """Return which form of `attach` the value is meant to be, so that its errors are about that form only."""
    if isinstance(value, Every | At):
        return f"<{value.kind}>"
    if not isinstance(value, Mapping):
        return "<attachments>"
    if value.get("kind") in ("every", "at"):
        return f"<{value['kind']}>"
    if "anchor_layers" in value or "augmenter_layers" in value:
        return "<at>"
    return "<attachments>" if "anchor_layer" in value or "augmenter_layer" in value else "<every>"


def _name_tag(value: object) -> str:
    """Return whether an augmenter's first argument is meant as a composition or as a name."""
    return "<composition>" if isinstance(value, Composition | Mapping) else "<name>"


class Augmenter(Declared):
    """A frozen model that the anchor reads.

    Args:
        name: A card's name, or a whole `Composition`, which is then trained together with this one.
        attach: Where the attachments sit: `every(step)`, `at(...)` or a list of attachments.
        reading: Which text it sees: the `prompt` once, or the `stream` (the prompt and every new token).
        prompt_visibility: `full`: every anchor position may see the whole prompt; `causal`: only what it has read.
        prompt_template: The text it reads in place of the prompt, with one `{prompt}`; None reads the prompt itself.
        open_words: With a tokenizer of its own, the last word of a text that grows may be cut into other tokens once
            it goes on. `wait`: it is read when the next one begins, so what the augmenter expects next is a word late.
            `read`: it is read at once, as if it ended there, and withdrawn if it goes on.
        num_heads: Attention heads of the attachments; None takes the anchor's.
        norms: `rms` normalises what attachments read of both models; with `none` the sizes of states, which differ a
            hundredfold between models, set the pace of learning.
        gate: `tanh` multiplies each attachment's output by the tanh of a trained number.
        positions: `rotary` rotates queries and keys by the aligned text index; `distance` prefers what stands near in
            the text, more or less strongly by head.
        writes: `relative` multiplies what an attachment adds by the root mean square of the stream it is added to. That
            is 15 times as large after the last blocks of SmolLM2 as after its first.
        first_token: `spare` writes nothing at the first token of a text. Many models rest their attention there and
            give it a state up to a hundred times as large as others (arXiv 2309.17453, 2402.17762), which attachments
            would first have to learn not to disturb.
        scale: Factor on the attachments' output; 0 switches the augmenter off.
        runtime: What runs it; None takes the card's.
        if_unavailable: When the service that runs it does not answer, requests `fail`, or are answered without it
            (`skip`) and say so. Training fails in any case.
    """

    name: Annotated[
        Annotated[str, Tag("<name>")] | Annotated[Composition, Tag("<composition>")], Discriminator(_name_tag)
    ]
    attach: Annotated[
        Annotated[Every, Tag("<every>")]
        | Annotated[At, Tag("<at>")]
        | Annotated[tuple[Attachment, ...], Tag("<attachments>")],
        Discriminator(_attach_tag),
    ] = Every(step=4)
    reading: Reading = "stream"
    prompt_visibility: PromptVisibility = "full"
    prompt_template: str | None = None
    open_words: OpenWords = "wait"
    num_heads: StrictInt | None = None
    norms: Norms = "rms"
    gate: Gate = "none"
    positions: Positions = "none"
    writes: Writes = "absolute"
    first_token: FirstToken = "write"
    scale: float = 1.0
    runtime: Runtime | None = None
    if_unavailable: IfUnavailable = "fail"

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str | Composition,
            *,
            attach: Every | At | Sequence[Attachment | Mapping[str, int]] = ...,
            reading: Reading = ...,
            prompt_visibility: PromptVisibility = ...,
            prompt_template: str | None = ...,
            open_words: OpenWords = ...,
            num_heads: int | None = ...,
            norms: Norms = ...,
            gate: Gate = ...,
            positions: Positions = ...,
            writes: Writes = ...,
            first_token: FirstToken = ...,
            scale: float = ...,
            runtime: Runtime | None = ...,
            if_unavailable: IfUnavailable = ...,
        ) -> None: ...

    else:

        def __init__(self, *name: str | Composition, **fields: Any) -> None:
            if len(name) > 1 or (name and "name" in fields):
                raise TypeError("Augmenter takes one positional argument, its name; name the others: attach=...")
            super().__init__(**({"name": name[0]} if name else {}), **fields)

    @property
    def key(self) -> str:
        """The augmenter's name as a string: the card's, or the nested composition's."""
        return self.name if isinstance(self.name, str) else self.name.name


class Composition(Declared):
    """An anchor language model and the augmenters it reads.

    Args:
        name: What the composed model is called.
        anchor: The card's name of the frozen causal language model whose output is the answer.
        augmenters: The frozen models it reads.
        description: A sentence for people.
    """

    name: str
    anchor: str
    augmenters: tuple[Augmenter, ...] = Field(default=())
    description: str = ""

    if TYPE_CHECKING:

        def __init__(
            self, *, name: str, anchor: str, augmenters: Sequence[Augmenter] = ..., description: str = ...
        ) -> None: ...


Augmenter.model_rebuild()
