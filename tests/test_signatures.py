"""A call can be read: what travels together is one object, and no function takes more than eight things."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "pipeline"
MOST = 8
KNOBS = {"teach"}  # a learner turns one of them at a time, by name


def parameters(function: ast.FunctionDef) -> int:
    """Without ``self`` and ``cls``."""
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def functions(folder: Path) -> list[tuple[str, int]]:
    """(name, parameters) of each function of a package."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("*.py"))]
    return [(n.name, parameters(n)) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


def test_no_call_is_too_long_to_read() -> None:
    assert [(name, count) for name, count in functions(ROOT) if count > MOST and name not in KNOBS] == []


def test_the_training_takes_its_base_its_data_and_a_session() -> None:
    assert dict(functions(ROOT / "training"))["train"] <= 6


def test_parameters_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(a, /, b, *c, d=1, **e): ...\nclass A:\n    def g(self, x): ...\n")
    assert functions(tmp_path) == [("f", 5), ("g", 1)]
