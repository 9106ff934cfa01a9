"""The course in a browser: JupyterLab runs cells, the slider redraws its picture, the search of the site finds Chinese words."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.course.execute import NOTEBOOKS

ROOT = NOTEBOOKS.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "a-token-of-this-test"
START_SECONDS = 600.0  # of JupyterLab
PATIENCE = 600_000  # milliseconds: one cell imports Unsloth, one builds the mix; a busy machine takes minutes for that
# What a user would choose in the settings: every cell is drawn, also those that are not in sight.
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"}}

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="JupyterLab is not installed"),
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that shows copies of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns("solutions", ".ipynb_checkpoints"))
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    options += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.allow_root=True", "--no-browser"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=None"]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    environment |= {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + START_SECONDS
            while True:
                told = (folder / "log.txt").read_text(encoding="utf-8")[-3000:]
                assert process.poll() is None and time.monotonic() < until, told
                try:
                    urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                    break
                except (urllib.error.URLError, TimeoutError):
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(120)  # it ends its kernels first
            except subprocess.TimeoutExpired:
                process.kill()


def run_until(browser: Any, lab: str, notebook: Path, cell: str) -> tuple[Any, Any]:
    """Open a notebook and run its code cells up to one of them: click a cell, press the keys, wait for its number."""
    from playwright.sync_api import expect

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    last = next(place for place, one in enumerate(cells) if one["id"] == cell)
    view = browser.new_page(viewport={"width": 1400, "height": 1000})
    view.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    view.goto(f"{lab}/lab/workspaces/{notebook.stem}/tree/notebooks/{notebook.name}?reset&token={TOKEN}")
    drawn = view.locator(".jp-Notebook .jp-Cell")
    expect(drawn).to_have_count(len(cells))
    expect(view.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")
    code = [place for place, one in enumerate(cells[: last + 1]) if one["cell_type"] == "code"]
    for place in code:
        prompt = drawn.nth(place).locator(".jp-InputPrompt")
        _start(view, prompt)
        expect(prompt, f"cell {cells[place]['id']}").to_have_text(re.compile(r"\[\d+\]:"))
    assert view.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    return view, drawn.nth(last)


def _start(view: Any, prompt: Any) -> None:
    """Click a cell and press the keys; again where nothing happens, as while JupyterLab still moves the focus."""
    from playwright import sync_api

    for _ in range(10):
        prompt.click()
        view.keyboard.press("Shift+Enter")
        with contextlib.suppress(sync_api.TimeoutError):
            prompt.filter(has_text=re.compile(r"\[(\*|\d+)\]:")).wait_for(timeout=15_000)
            return


def test_a_model_answers_in_jupyterlab(browser: Any, lab: str) -> None:
    (notebook,) = NOTEBOOKS.glob("00_*.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    asking = next(one["id"] for one in cells if one["cell_type"] == "code" and "print(ask(" in "".join(one["source"]))
    view, cell = run_until(browser, lab, notebook, asking)
    assert cell.locator(".jp-OutputArea-output").first.inner_text().strip()
    view.close()


def test_the_slider_redraws_the_mix(browser: Any, lab: str) -> None:
    from playwright.sync_api import expect

    (notebook,) = NOTEBOOKS.glob("03_*.ipynb")
    view, cell = run_until(browser, lab, notebook, "slider")
    picture, handle = cell.locator("img"), cell.locator(".noUi-handle")
    expect(picture).to_have_count(1)
    before = picture.get_attribute("src")
    assert before and before.startswith("data:image/png")
    handle.scroll_into_view_if_needed()
    place = handle.bounding_box()
    view.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    view.mouse.down()
    view.mouse.move(place["x"] + 60, place["y"] + place["height"] / 2, steps=5)
    view.mouse.up()
    expect(cell.locator(".widget-readout")).not_to_have_text("0.50")
    expect(picture).not_to_have_attribute("src", before)
    view.close()


def built_site(folder: Path, *options: str) -> Path:
    """The folder of the pages."""
    tools = ROOT / ".venv-site" / "bin"
    if not (tools / "mkdocs").exists():
        pytest.skip("there is no .venv-site; `make site` makes it")
    subprocess.run([str(tools / "python"), str(ROOT / "docs" / "make_site.py"), str(folder), *options], check=True)
    build = [str(tools / "mkdocs"), "build", "--quiet", "--config-file", str(folder / "mkdocs.yml")]
    subprocess.run(build, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return folder / "html"


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
@pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="llama.cpp is not installed (requirements-export.txt)"
)
def test_a_model_answers_in_a_page(browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    from pipeline.export.gguf import write_gguf

    (model,) = write_gguf(ROOT / "models" / "embedded", tmp_path, "base", tmp_path / "log", ("f16",)).values()
    pages = built_site(tmp_path / "site", "--demo", str(model))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(pages))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            for place in ("demo.html", "zh/demo.html"):
                view = browser.new_page()
                asked: list[str] = []
                view.on("request", lambda request, asked=asked: asked.append(request.url))
                view.goto(f"http://127.0.0.1:{server.server_port}/{place}")
                view.locator("#demo input").fill("What is 47 + 6?")
                expect(view.locator("#demo button")).to_be_enabled(timeout=PATIENCE)
                view.locator("#demo button").click()
                columns = [view.locator(f"#demo [data-mode={mode}]") for mode in ("thinking", "non_thinking")]
                for column in columns:
                    expect(column.locator("p")).to_contain_text("53", timeout=PATIENCE)
                expect(columns[0].locator("pre")).to_contain_text("7 + 6")
                assert columns[1].locator("pre").text_content() == ""
                assert all(
                    url.startswith((f"http://127.0.0.1:{server.server_port}/", "blob:", "data:")) for url in asked
                )
                view.close()
        finally:
            server.shutdown()
    view = browser.new_page()
    view.goto((pages / "demo.html").as_uri())
    expect(view.locator("#demo [role=status]")).to_contain_text("http.server")
    view.close()


def test_the_search_of_the_site_finds_chinese_words(browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    pages = built_site(tmp_path)
    view = browser.new_page()
    for place in ("index.html", "zh/index.html"):
        view.goto((pages / place).as_uri())  # from the folder, as one without a network would
        view.locator("[data-md-component=search-query]").fill("思考")
        found = view.locator(".md-search-result__item")
        expect(found.first).to_contain_text("思考", timeout=30_000)
    view.close()
