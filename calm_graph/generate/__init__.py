"""Text from a composed model, as it is made."""
