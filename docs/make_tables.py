"""Write the tables of the docs from ``docs/results``:  python docs/make_tables.py [--check]

In a Markdown file, what stands between ``<!-- results:NAME -->`` and ``<!-- end -->`` is the table of docs/results/NAME.json,
made by the ``table`` function of the module that wrote the file. ``NAME:PART`` is one of several views of it. ``--check``
changes nothing and says which file is behind its results (exit code 1).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+)(?::(?P<part>\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may hold tables."""
    return [*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]


def _sweep(result: dict[str, Any], part: str | None) -> str:
    from pipeline import sweep

    return sweep.recommendation(result) if part == "recommended" else sweep.table(result)


def _renderers() -> dict[str, Callable[[dict[str, Any], str | None], str]]:
    """Name of a result → what makes its table; every other result is a sweep's."""
    from pipeline import method_study, sampling_study, search, soft_switches

    return {
        "methods": method_study.table,
        "search": lambda result, _: search.table(result),
        "sampling": lambda result, _: sampling_study.text(result),
        "switches": lambda result, _: soft_switches.text(result),
    }


def render(name: str, part: str | None = None) -> str:
    """The table of one result.

    Raises:
        UserError: there is no such result.
    """
    from pipeline.files import read_json

    return _renderers().get(name, _sweep)(read_json(RESULTS / f"{name}.json"), part).strip()


def filled(text: str) -> str:
    """A page with all of its tables anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{render(m['name'], m['part'])}\n\n{m[4]}", text)


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    from pipeline.files import write_text

    behind = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            behind.append(page.relative_to(ROOT).as_posix())
            if "--check" not in argv:
                write_text(page, new)
    for name in behind:
        print(f"{name}: {'behind its results' if '--check' in argv else 'written'}")
    return 1 if behind and "--check" in argv else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
