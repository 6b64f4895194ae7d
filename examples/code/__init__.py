"""A small English model that reads a model of code."""
