"""Shapes of the training benchmarks, free of imports so that other CALM codes can be measured on the same ones."""

VOCAB_SIZE = 8192
ANCHOR = {"hidden_size": 512, "num_hidden_layers": 12}
AUGMENTER = {"hidden_size": 256, "num_hidden_layers": 8}
NUM_HEADS = 8
HEAD_DIM = 64
INTERMEDIATE_SIZE = 2048
CONTEXT_LENGTH = 1024
ATTACHED = ((0, 0), (2, 3), (4, 7), (7, 11))
"""(augmenter layer, anchor layer), 0-based, evenly spaced, first and last included."""
BATCH_SIZE = 8
NUM_TOKENS = 128
