"""Results as files to look at: report.md, report.html (whole in one file), pictures, and results.json."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from calm_graph.evaluate.reports.plots import Plot, plots
from calm_graph.evaluate.reports.results import Compared, Results
from calm_graph.evaluate.reports.tables import Cell, Table, shown_difference, shown_seeds, tables

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --best: #2f6db5; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: 6px; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td small { opacity: .65; } td.best b { color: var(--best); }
svg { width: 100%; height: auto; max-height: 24rem; }
@media (prefers-color-scheme: dark) { :root { --best: #7db2f0; } }
"""
_NOTE = (
    "In brackets: 95% of bootstrap draws of the test rows. The best of each line is bold. `average` is the mean over "
    "the languages of a task. A mean of several seeds has the lowest and the highest of them in its brackets; a "
    "difference of such means has what 95% of draws of the rows have, with these seeds."
)


def write_report(results: Results, folder: Path, *, command: str, title: str = "Evaluation") -> None:
    """Write the files; each is replaced as a whole.

    Args:
        results: What was measured.
        folder: Where to.
        command: What made them.
        title: Of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / "results.json")
    drawn = list(plots(results))
    for plot in drawn:
        _replace(folder / f"{plot.name}.png", plot.png)
    _replace(folder / "report.md", markdown(results, drawn, command=command, title=title).encode())
    _replace(folder / "report.html", page(results, drawn, command=command, title=title).encode())


def markdown(results: Results, drawn: Sequence[Plot], *, command: str, title: str) -> str:
    """Return the report as Markdown.

    Args:
        results: What was measured.
        drawn: Its pictures, which lie beside the report.
        command: What made it.
        title: Its head.

    Returns:
        The text.
    """
    parts = [f"# {title}", f"```bash\n{command}\n```", _NOTE]
    parts += [f"![{plot.title}]({plot.name}.png)" for plot in drawn]
    for table in tables(results):
        lines = [["", *table.systems], ["---"] * (len(table.systems) + 1)]
        lines += [[head, *map(_markdown_cell, cells)] for head, cells in table.lines]
        parts.append(f"## {table.title}\n\n{_markdown_table(lines)}")
    if results.differences:
        heads, rows = _difference_lines(results.differences)
        lines = [heads, ["---"] * len(heads), *rows]
        parts.append(f"## Differences (paired bootstrap)\n\n{_markdown_table(lines)}")
    return "\n\n".join(parts) + "\n"


def page(results: Results, drawn: Sequence[Plot], *, command: str, title: str) -> str:
    """Return the report as one HTML file that needs nothing else.

    Args:
        results: What was measured.
        drawn: Its pictures.
        command: What made it.
        title: Its head.

    Returns:
        The text.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f"<pre>{html.escape(command)}</pre>", f"<p>{html.escape(_NOTE)}</p>"]
    for plot in drawn:
        figure = plot.svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(plot.title, quote=True)}"', 1)
        parts.append(f"<h2>{html.escape(plot.title)}</h2>{figure}")
    parts += [f"<h3>{html.escape(table.title)}</h3>{_html_table(table)}" for table in tables(results)]
    if results.differences:
        heads, rows = _difference_lines(results.differences)
        body = "".join(_html_line("td", map(html.escape, row)) for row in rows)
        table = f"<table>{_html_line('th', map(html.escape, heads))}{body}</table>"
        parts.append(f'<h2>Differences (paired bootstrap)</h2><div class="wide">{table}</div>')
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _difference_lines(differences: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    heads = ["task", "language", "metric", "seeds", "difference", "", "95%", "p"]
    rows = [
        [
            f"{found.suite}, {found.task}",
            found.language or "all",
            found.metric,
            shown_seeds(found),
            f"{found.system} - {found.against}",
            *shown_difference(found),
            f"{found.probability:.3f}",
        ]
        for found in differences
    ]
    return heads, rows


def _html_table(table: Table) -> str:
    body = ""
    for head, cells in table.lines:
        body += f"<tr><th>{html.escape(head)}</th>{''.join(map(_html_cell, cells))}</tr>"
    return f'<div class="wide"><table>{_html_line("th", map(html.escape, ["", *table.systems]))}{body}</table></div>'


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td>-</td>"
    value = f"<b>{cell.text}</b>" if cell.is_best else cell.text
    return f"<td{' class=best' if cell.is_best else ''}>{value} <small>{cell.spread}</small></td>"


def _html_line(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{f'**{cell.text}**' if cell.is_best else cell.text} [{cell.spread}]"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_bytes(content)
    os.replace(scratch, path)
