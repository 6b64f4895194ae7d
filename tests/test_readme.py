"""The README names every module, and its composition is one."""

from __future__ import annotations

import re
from pathlib import Path

from calm_graph import load_composition, make_plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_module() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    missing = [
        str(path.relative_to(ROOT))
        for package in ("registry", "calm_graph", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" and f"{path.name} " not in tree
    ]
    assert not missing, f"README.md, 'Where things are', does not name {missing}"


def test_the_composition_of_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n# helpdesk.py\n(.*?)```", README, flags=re.DOTALL)
    file = tmp_path / "helpdesk.py"
    file.write_text(block)
    assert len(make_plan(load_composition(file)).runs) == 3
