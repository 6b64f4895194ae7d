"""Results as files to look at: report.md and results.json."""

from __future__ import annotations

from pathlib import Path

from calm_graph.evaluate.results import Results
from calm_graph.evaluate.tables import text


def write_report(results: Results, folder: Path, *, command: str) -> None:
    """Write the files.

    Args:
        results: What was measured.
        folder: Where to.
        command: What made them.
    """
    results.write(folder / "results.json")
    (folder / "report.md").write_text(f"`{command}`\n\n```\n{text(results)}\n```\n", encoding="utf-8")
