"""Load for an OpenAI-compatible server: requests, so many together or so many a second, streamed and timed."""
