"""Measured bars: `python -m benchmarks --list`."""
