"""Cached states of frozen models over a set of texts: computed once, then read in training instead of the models."""
