"""What can be compared with a composition, by name; imports nothing, so that it can be listed at once."""

from __future__ import annotations

BASELINES = {
    "lora": "low-rank updates of the anchor, with as many trained parameters and the same data",
    "full_finetune": "the anchor itself, trained on the same data",
    "routing": "one model for each request: the one that predicts the task's dev rows best",
    "soft_ensemble": "the mean of the models' distributions of the next token, or word where tokenizers differ",
    "merge": "the anchor's weights with those of an augmenter added, where shapes allow",
    "composed_vanilla": "the composition with another augmenter, which --replace names",
    "composed_random": "the composition with augmenters of random weights",
    "composed_prompt": "the composition with another reading; likewise composed_stream, _full, _causal, _no_norms, "
    "_gate, _no_gate, _rotary, _distance, _no_positions, _relative, _spare, _every_N and _heads_N",
    "NAME_rows_N": "one that is trained, on N of the rows: composed_rows_500, lora_rows_500, ... (a data size curve)",
}
"""Name -> what it is, in a sentence."""
