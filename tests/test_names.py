"""A name that one room takes from another has one home: who reads `plan` or `compare` in an import knows which is meant."""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "pipeline"


def names_of(tree: ast.Module) -> set[str]:
    """What stands at the top of a module."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def shared(folder: Path) -> dict[str, list[str]]:
    """Names that are imported from more than one module in which they are made."""
    homes, imported = defaultdict(set), defaultdict(set)
    for file in folder.rglob("*.py"):
        module = ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        homes[module] = names_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(folder.name):
                for alias in node.names:
                    imported[alias.name].add(node.module)
    made = {name: sorted(m for m in modules if name in homes[m]) for name, modules in imported.items()}
    return {name: modules for name, modules in sorted(made.items()) if len(modules) > 1}


def test_each_imported_name_has_one_home() -> None:
    assert shared(ROOT) == {}


def test_two_homes_are_found(tmp_path: Path) -> None:
    package = tmp_path / "rooms"
    package.mkdir()
    for name in ("a", "b"):
        (package / f"{name}.py").write_text("def plan():\n    return 1\n")
    (package / "c.py").write_text("from rooms.a import plan\n\n\ndef late():\n    from rooms.b import plan\n")
    assert shared(package) == {"plan": ["rooms.a", "rooms.b"]}


def test_the_spine_can_be_read_in_an_hour() -> None:
    """README names it, with its length."""
    readme = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    told = readme[readme.index("The spine of the pipeline") :].split("\n\n")[0]
    names = "settings/section settings/model settings/training settings/evaluation settings/profile data/chat_format data/mix "
    names += "model/load training/train training/loop model/form evaluation/evaluate run/__init__"
    assert "2,500 lines" in told and all(
        name.removesuffix("/__init__").split("/")[-1] in told for name in names.split()
    )
    assert sum(len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in names.split()) <= 2500


def imported_here(tree: ast.AST) -> set[tuple[str, str]]:
    """(module, name) of each ``from pipeline… import name``."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {(n.module, a.name) for n in nodes if n.module and n.module.startswith("pipeline") for a in n.names}


def there(module: str, name: str) -> bool:
    """Whether a module of the package has such a name, or a module of that name in it."""
    path = ROOT.parent.joinpath(*module.split("."))
    if any(path.joinpath(name).with_suffix(end).exists() for end in (".py", "")):
        return True
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    aliases = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return name in names_of(tree) | aliases


def test_notebooks_import_what_is_there() -> None:
    """A notebook of an hour is not run at every change, and a name that has moved would be found by a learner."""
    wrong = []
    for file in sorted((ROOT.parent / "notebooks").glob("**/*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            lines = [line for line in "".join(cell["source"]).splitlines() if not line.lstrip().startswith(("%", "!"))]
            if cell["cell_type"] == "code":
                names = imported_here(ast.parse("\n".join(lines)))
                wrong += [f"{file.name}: {module}.{name}" for module, name in names if not there(module, name)]
    assert wrong == []
    assert not there("pipeline.hybrid.accept", "text") and there("pipeline.hybrid.accept", "hybrid_text")
