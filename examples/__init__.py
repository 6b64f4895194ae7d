"""Runnable examples of calm_graph."""
