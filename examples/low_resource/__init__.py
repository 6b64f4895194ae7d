"""Translation from languages that the anchor does not know, read by an augmenter that knows a little of them."""
