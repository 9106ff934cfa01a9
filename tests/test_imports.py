"""The import rule: wings import downwards only, nothing in a circle; and what that looks like when it is broken."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "transformers", "trl", "unsloth", "peft", "datasets", "evalscope", "accelerate", "safetensors"),
    *("matplotlib", "optuna", "scipy", "jinja2", "modelscope", "pyarrow", "numpy", "nbformat", "papermill"),
}


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rule_is_kept() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_up_the_story_is_found(copy: Path) -> None:
    with (copy / "pipeline/data/mix.py").open("a") as file:
        file.write("\n\ndef late():\n    from pipeline.training.train import train\n\n    return train\n")
    done = check(copy)
    assert done.returncode == 1 and "pipeline.data is not allowed to import pipeline.training" in done.stdout


def test_a_circle_within_a_wing_is_found(copy: Path) -> None:
    with (copy / "pipeline/data/formats.py").open("a") as file:
        file.write("\n\nfrom pipeline.data.conversations import Conversation as Conversation\n")
    done = check(copy)
    assert done.returncode == 1 and "no circle BROKEN" in done.stdout


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(tree: ast.AST, nodes: list[ast.stmt]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_a_function_imports_late_only_what_is_heavy() -> None:
    """Late imports are for what costs seconds; they must not hide a circle. The commands import late on purpose."""
    trees = {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "pipeline").rglob("*.py")}
    top = {name: _imports(tree, tree.body) for name, tree in trees.items()}

    def heavy(name: str, seen: frozenset[str] = frozenset()) -> bool:
        if name.split(".")[0] in HEAVY:
            return True
        if name not in trees or name in seen:
            return False
        return any(heavy(other, seen | {name}) for other in top[name])

    late = []
    for name, tree in trees.items():
        if name.startswith("pipeline.cli"):
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                        targets = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                        if not any(heavy(str(target)) for target in targets):
                            late.append(f"{name}:{node.lineno} {node.module}")
    assert late == [], "\n".join(late)
