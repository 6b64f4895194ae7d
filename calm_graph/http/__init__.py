"""The OpenAI-compatible HTTP API, over whatever answers: routes, errors, keys, metrics, and the playground's page."""
