"""No sample may be longer than the model can read: what happens to those that are, and the count of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from calm_graph.data.samples import Dataset, Sample
from calm_graph.declare.settings import LongRows
from calm_graph.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LengthLimit:
    """Sees that no sample is longer than the model can read, and counts those that were.

    Args:
        max_length: The most tokens of a sample; None allows any.
        long_rows: What happens to longer ones.
    """

    max_length: int | None
    long_rows: LongRows
    num_samples: int = 0
    num_cut: int = 0
    num_skipped: int = 0
    num_long_prompts: int = 0
    first: Sample | None = None

    def fitted(self, samples: Dataset) -> Dataset:
        """Return the samples that are short enough, and the others cut if they may be."""
        self.num_samples += len(samples)
        if self.max_length is None or (samples.lengths <= self.max_length).all():
            return samples
        fitting = (self._fitted(sample, self.max_length) for sample in samples)
        return Dataset.of([sample for sample in fitting if sample], pad_token_id=samples.pad_token_id)

    def _fitted(self, sample: Sample, limit: int) -> Sample | None:
        if len(sample.input_ids) <= limit:
            return sample
        self.first = self.first or sample
        if sample.prompt_length >= limit:
            self.num_long_prompts += 1
        elif self.long_rows == "cut":
            self.num_cut += 1
            return _cut(sample, limit)
        self.num_skipped += 1
        return None

    def report(self, name: str) -> None:
        """Warn of what was skipped and cut.

        Raises:
            InputError: Nothing may be skipped, or nothing is left.
        """
        if self.first is None:
            return
        prompts = f"; the prompts of {self.num_long_prompts} of them fill that alone" if self.num_long_prompts else ""
        if self.long_rows == "error":
            raise InputError(
                f"{self.first.place}: got {len(self.first.input_ids)} tokens, but at most {self.max_length} are "
                f"allowed (max_length, tokens_per_batch, or the anchor's context); {self.num_skipped} of "
                f"{self.num_samples} samples are too long{prompts}. Allow more, shorten them, or set long_rows to "
                "'skip' or 'cut'"
            )
        if self.num_skipped == self.num_samples:
            raise InputError(
                f"{self.first.place}: all {self.num_samples} samples are longer than {self.max_length} tokens{prompts}"
            )
        logger.warning(
            "%s: %d samples skipped and %d cut at %s tokens, the first is %s%s",
            name, self.num_skipped, self.num_cut, self.max_length, self.first.place, prompts,
        )  # fmt: skip


def _cut(sample: Sample, length: int) -> Sample:
    # The bytes are shared out by tokens: exact counts would need the text to be cut where a token ends.
    share = (length - sample.prompt_length) / (len(sample.input_ids) - sample.prompt_length)
    num_bytes = max(1, round(sample.completion_bytes * share))
    return replace(
        sample, input_ids=sample.input_ids[:length], told_ids=sample.told_ids[:length], completion_bytes=num_bytes
    )
