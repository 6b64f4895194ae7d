"""One anchor that reads a model of languages and a model of code, each for its own job."""
