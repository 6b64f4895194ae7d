"""Word problems in many languages, read by an augmenter that knows more of them than the anchor."""
