"""Augmenters in ONNX Runtime: export those of the demo, swap them into its trained composition, compare."""
