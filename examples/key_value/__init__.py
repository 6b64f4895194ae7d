"""A company's private numbers, in a small model of its own, composed with a language model that can add."""
