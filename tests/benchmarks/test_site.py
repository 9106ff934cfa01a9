"""The site's pages: each has its place in the contents, and every link among them leads to a page that there is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(make_site: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    folder.joinpath("source").mkdir()
    make_site.main(folder, None, [])
    return folder


def leaves(nav: object) -> list[str]:
    """The pages of a ``nav``, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in leaves(item)]


def test_every_page_has_one_place_in_the_contents(site: Path) -> None:
    nav = yaml.safe_load((site / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav: ")[2])
    placed = leaves(nav)
    pages = {str(p.relative_to(site / "source")) for p in (site / "source").rglob("*.md") if ".zh." not in p.name}
    assert sorted(placed) == sorted(pages)
    assert {"index.zh.md", "docs/complaints.zh.md", "notebooks/01_chat_format.zh.md"} <= {
        str(p.relative_to(site / "source")) for p in (site / "source").rglob("*.zh.md")
    }


def test_every_link_leads_somewhere(site: Path, make_site: ModuleType) -> None:
    count = 0
    for page in (site / "source").rglob("*.md"):
        for match in make_site.LINK.finditer(page.read_text(encoding="utf-8")):
            address = (match[3] or "").partition("#")[0]
            if address and not re.match(r"[a-z]+:", address):
                assert (page.parent / address).exists(), f"{page.name}: {address}"
                count += 1
    assert count > 50


def test_the_reference_names_modules(site: Path) -> None:
    named = re.findall(r"(?m)^::: (\S+)$", (site / "source" / "reference.md").read_text(encoding="utf-8"))
    assert len(named) > 100 and "pipeline.data.chat_format" in named
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() and (path.parent / "__init__.py").is_file()


def test_nothing_comes_from_elsewhere() -> None:
    settings = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "polyfills: [assets/iframe-worker.js]" in settings
    assert "http://" not in settings and "https://" not in settings


def test_the_titles_of_the_contents_are_translated(make_site: ModuleType) -> None:
    titles = {title for item in make_site.contents([Path("docs/other.md"), Path("demo.md")]) for title in item}
    settings = yaml.safe_load(
        (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8").replace("@ROOT@", "x")
    )
    (i18n,) = [plugin["i18n"] for plugin in settings["plugins"] if isinstance(plugin, dict) and "i18n" in plugin]
    assert titles | {"Glossary"} == set(i18n["languages"][1]["nav_translations"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [data](docs/data.md#mix)", "see [data](docs/data.md#mix)"),
        ("see [`data_recipes/`](data_recipes)", "see `data_recipes/`"),
        ("[中文](README.zh-CN.md)", "中文"),
        ("[a](https://example.org/a)", "[a](https://example.org/a)"),
        ("`[a](LICENSE)` and [b](LICENSE)", "`[a](LICENSE)` and b"),
        ("[01](notebooks/01_chat_format.ipynb)", "[01](notebooks/01_chat_format.md)"),
        ("[x](docs/complaints.zh.md)", "[x](docs/complaints.md)"),
        ("![p](docs/ratio.png)", "![p](docs/ratio.png)"),
        ("```\n[a](LICENSE)\n```", "```\n[a](LICENSE)\n```"),
    ],
)
def test_links(make_site: ModuleType, text: str, expected: str) -> None:
    assert make_site.relinked(text, ROOT / "README.md", Path("index.md")) == expected


def test_links_from_a_folder(make_site: ModuleType) -> None:
    text = "[start](../README.md), [code](../pipeline/run/__init__.py), [ratio](ratio.md)"
    assert make_site.relinked(text, ROOT / "docs" / "data.md", Path("docs/data.md")) == (
        "[start](../index.md), code, [ratio](ratio.md)"
    )


def test_a_list_after_a_paragraph_is_a_list(make_site: ModuleType) -> None:
    assert make_site.spaced("Words:\n- a\n  more\n- b\n") == "Words:\n\n- a\n  more\n- b\n"
    assert make_site.spaced("```\nx\n- a\n```\n") == "```\nx\n- a\n```\n"


def test_pictures_of_an_executed_notebook_come_along(make_site: ModuleType, tmp_path: Path) -> None:
    picture = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
    output = {"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1", "execution_count": 1, "outputs": [output]}
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    page = make_site.notebook_page(path, Path("notebooks/01_x.md"), tmp_path)
    (made,) = (tmp_path / "notebooks").iterdir()
    assert made.name.startswith("01_x_") and f"({made.name})" in page and made.read_bytes().startswith(b"\x89PNG")


def run_with_report(folder: Path, title: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(f"<title>{title}</title><h1>Report</h1>", encoding="utf-8")
    return folder


def test_reports_of_runs_have_a_page_in_each_language(make_site: ModuleType, tmp_path: Path) -> None:
    course, other = tmp_path / "course", run_with_report(tmp_path / "other", "x [y] &amp; z: report")
    run_with_report(course / "main", "embedded: report")
    (tmp_path / "site" / "source").mkdir(parents=True)
    make_site.main(tmp_path / "site", course, [other])
    source = tmp_path / "site" / "source"
    for name in ("report.md", "report.zh.md"):
        text = (source / name).read_text(encoding="utf-8")
        links = re.findall(r"\[([^\]]*)\]\(([^)]*)\)", text)
        assert [address for _, address in links] == ["reports/1.html", "reports/2.html"]
        assert links[0][0] == "embedded: report" and all((source / address).is_file() for _, address in links)
    nav = yaml.safe_load((tmp_path / "site" / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav: ")[2])
    assert leaves(nav).count("report.md") == 1


def test_without_a_run_there_is_no_page_of_reports(site: Path) -> None:
    assert not (site / "source" / "report.md").exists()


def test_a_run_without_a_report_is_refused(make_site: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        make_site.report_pages([tmp_path], tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_finds_chinese_words(tmp_path: Path) -> None:
    """What `make site` does, where it has made its environment; ``strict`` ends with an error at the first warning."""
    tools = ROOT / ".venv-site" / "bin"
    if not (tools / "mkdocs").exists():
        pytest.skip("there is no .venv-site; `make site` makes it")
    run = run_with_report(tmp_path / "run", "embedded: report")
    gather = [tools / "python", ROOT / "docs" / "make_site.py", tmp_path / "site", "--report", run]
    subprocess.run([*map(str, gather)], check=True, capture_output=True)
    build = [tools / "mkdocs", "build", "--strict", "--config-file", tmp_path / "site" / "mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*map(str, build)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = tmp_path / "site" / "html"
    assert (pages / "reports" / "1.html").is_file() and (pages / "zh" / "report.html").is_file()
    found = json.loads((pages / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    words = [entry for entry in found if "思考" in entry["text"].replace("\u200b", "")]
    assert len(words) > 20 and any(entry["location"].startswith("zh/") for entry in words)
    assert any("\u200b" in entry["text"] for entry in words)  # the words are told apart, so the search finds one


# --- a model in a page --------------------------------------------------------------------------------------------------


@pytest.fixture
def page(make_site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with the page of a model; the engine's files stand there already, as after the first time."""
    kept = tmp_path / "prefix" / "wllama"
    kept.mkdir(parents=True)
    for name in make_site.ENGINE_FILES.values():
        (kept / name).write_text(name)
    (tmp_path / "model.gguf").write_bytes(b"GGUF and so on")
    monkeypatch.setattr(make_site.sys, "prefix", str(tmp_path / "prefix"))
    (tmp_path / "site" / "source").mkdir(parents=True)
    make_site.main(tmp_path / "site", None, [], tmp_path / "model.gguf")
    return tmp_path / "site"


def test_the_page_of_a_model_has_all_that_it_needs(page: Path) -> None:
    assert "demo.md" in leaves(
        yaml.safe_load((page / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav: ")[2])
    )
    beside = page / "source" / "assets" / "demo"
    script = (beside / "demo.js").read_text(encoding="utf-8")
    loaded = set(re.findall(r'beside\("([^"]+)"\)', script))
    assert loaded == {"wllama.js", "wllama.wasm", "model.gguf"} <= {path.name for path in beside.iterdir()}
    said = set(re.findall(r'say\("(\w+)"', script)) | set(re.findall(r"dataset\.(\w+)", script)) - {"mode"}
    for name in ("demo.md", "demo.zh.md"):
        text = (page / "source" / name).read_text(encoding="utf-8")
        assert said <= set(re.findall(r"data-(\w+)=", text)), name
        source = re.search(r'<script type="module" src="([^"]+)"', text)
        assert (
            source
            and source[1].removeprefix("../") == "assets/demo/demo.js"
            and source[1].startswith("../") == (".zh." in name)
        )


def test_what_cannot_be_a_page_is_refused(
    make_site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"no GGUF")
    with pytest.raises(SystemExit, match="export RUN --to gguf"):
        make_site.demo_pages(tmp_path / "model.safetensors", tmp_path / "source")
    with pytest.raises(SystemExit, match="export RUN --to gguf"):
        make_site.demo_pages(tmp_path / "missing.gguf", tmp_path / "source")
    monkeypatch.setattr(make_site.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="npm"):
        make_site.engine(tmp_path / "wllama")
    monkeypatch.undo()

    def another(command: list[str], cwd: str, **options: object) -> subprocess.CompletedProcess[str]:
        Path(cwd, "wllama.tgz").write_bytes(b"another file")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(make_site.shutil, "which", lambda name: name)
    monkeypatch.setattr(make_site.subprocess, "run", another)
    with pytest.raises(SystemExit, match="checksum"):
        make_site.engine(tmp_path / "wllama")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.safetensors",
        "source",
    ]  # nothing half-made stays
