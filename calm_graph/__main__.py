"""`python -m calm_graph` is `calm-graph`."""

from calm_graph.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
