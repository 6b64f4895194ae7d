"""A conversation with a composed model: its messages, and what of them still fits into the context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from calm_graph.generate.sampling import Sampling
from calm_graph.generate.selector import Selector
from calm_graph.generate.stream import Generation, context_room, stream_text
from calm_graph.model.composed import ComposedModel
from calm_graph.model.prompts import messages_text, prompt_ids, render_chat


@dataclass(slots=True)
class Conversation:
    """Messages, and the model that answers them.

    An anchor without a chat template was never shown a conversation: each message is then a prompt of its own.

    Args:
        model: A composed model, in eval mode.
        sampling: How tokens are chosen.
        system: A first message that is never trimmed.
        scales: Augmenter name -> factor on what it contributes; others keep the composition's.
        selector: Chooses for each answer among the augmenters that `scales` does not name; None: all of them run.
        messages: What was said, the system message included.
    """

    model: ComposedModel
    sampling: Sampling
    system: str | None = None
    scales: dict[str, float] = field(default_factory=dict)
    selector: Selector | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.messages:
            self.reset()

    @property
    def has_template(self) -> bool:
        """Whether earlier messages are read at all."""
        return bool(self.model.tokenizer.chat_template)

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def set_scale(self, name: str, scale: float) -> None:
        """Scale an augmenter from the next answer on.

        Args:
            name: As in the composition.
            scale: 0 switches it off.

        Raises:
            InputError: There is no such augmenter.
        """
        with self.model.augmenters({name: scale}):
            self.scales[name] = scale

    def say(
        self, text: str, *, on_text: Callable[[str], None], on_trimmed: Callable[[int], None] | None = None
    ) -> Generation:
        """Answer a message; an answer cut short by Ctrl-C is remembered as far as it came.

        Args:
            text: The user's message.
            on_text: Called with each piece of the answer.
            on_trimmed: Called with how many old messages were forgotten because the context is full.

        Returns:
            The answer.

        Raises:
            InputError: The message is empty, or does not fit into the context even alone.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            if self.has_template:
                prompt = self._prompt(on_trimmed)
                prompt_text = messages_text(self.messages)
            else:
                prompt = prompt_text = text
            answer = stream_text(
                self.model,
                prompt,
                sampling=self.sampling,
                on_text=on_text,
                prompt_text=prompt_text,
                rendered=self.has_template,
                scales=self.scales,
                selector=self.selector,
            )
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def _prompt(self, on_trimmed: Callable[[int], None] | None) -> str:
        """Render the messages, the oldest exchanges forgotten until an answer fits."""
        num_trimmed = 0
        first = 1 if self.system else 0
        while True:
            prompt = render_chat(self.model.tokenizer, self.messages)
            num_tokens = len(prompt_ids(self.model.tokenizer, prompt, rendered=True))
            if context_room(self.model, num_tokens) >= self.sampling.max_new_tokens or len(self.messages) <= first + 1:
                break
            # Question and answer go together: templates want the roles to alternate.
            del self.messages[first : first + 2]
            num_trimmed += 2
        if num_trimmed and on_trimmed is not None:
            on_trimmed(num_trimmed)
        return prompt
