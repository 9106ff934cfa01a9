"""``chat --web`` over HTTP and in a browser: base and tuned, both modes, streaming; what does not belong there is refused."""

from __future__ import annotations

import http.client
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.export.web import LARGEST, Server
from pipeline.model.thinking_budget import SENTENCE

ROOT = Path(__file__).resolve().parents[2]
ASKED = {"which": "tuned", "mode": "thinking", "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(tiny_run: Path) -> Iterator[Server]:
    from pipeline.export.source import open_source
    from pipeline.export.talk import Talker

    with Server(Talker(open_source(tiny_run)), 0, seed=1) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    page: Server, body: Any, path: str = "/api/reply", method: str = "POST", headers: dict[str, str] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Status and the lines of the answer."""
    connection = http.client.HTTPConnection(*page.server_address[:2], timeout=120)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
        answer = connection.getresponse()
        return answer.status, [json.loads(line) for line in answer.read().splitlines()]
    finally:
        connection.close()


def joined(events: list[dict[str, Any]], *kinds: str) -> str:
    return "".join(text for event in events for kind, text in event.items() if kind in kinds)


@pytest.mark.slow
def test_both_models_in_both_modes(page: Server) -> None:
    replies = {}
    for which in ("base", "tuned"):
        for mode in ("thinking", "non_thinking"):
            status, events = request(page, ASKED | {"which": which, "mode": mode})
            assert status == 200 and len(events) > 3  # in pieces, not at the end
            message = events[-1]["done"]
            assert message["role"] == "assistant" and message["content"]
            assert joined(events, "answer").strip() == message["content"]
            assert ("reasoning_content" in message) == (mode == "thinking")
            assert joined(events, "reasoning").strip() == message.get("reasoning_content", "")
            assert events[-1]["tokens"] > 0 and events[-1]["cut"] is False
            replies[which, mode] = joined(events, "open", "reasoning", "close", "answer")
    assert len(set(replies.values())) > 2
    status, events = request(page, ASKED | {"budget": 3})
    assert status == 200 and SENTENCE.strip() in joined(events, "reasoning") and events[-1]["done"]["content"]
    assert request(page, ASKED)[1] == request(page, ASKED)[1]  # the seed decides


@pytest.mark.slow
def test_the_page_and_what_it_shows_come_from_here_alone(page: Server) -> None:
    connection = http.client.HTTPConnection(*page.server_address[:2], timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    status, (about,) = request(page, b"", "/api/run", "GET")
    assert status == 200 and about["modes"] == ["thinking", "non_thinking"] and about["model"] == "models/embedded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (
            ASKED | {"messages": [{"role": "user", "content": "17 + 25 " * 2000}]},
            {},
            400,
            "more than the model has room",
        ),
        (ASKED | {"messages": []}, {}, 400, "messages: "),
        (ASKED | {"which": "other"}, {}, 400, "which: "),
        (ASKED | {"mode": "slow"}, {}, 400, "mode: "),
        (ASKED | {"temperature": 9}, {}, 400, "temperature: "),
        (ASKED | {"budget": -1}, {}, 400, "budget: "),
        (ASKED | {"budget": 1000}, {}, 400, "leave no room for an answer"),
        (b"{", {}, 400, "JSON"),
        (json.dumps(ASKED).encode().replace(b"What", b"\xff"), {}, 400, "JSON"),
        (json.dumps(ASKED).encode().replace(b"What", b"\\ud800"), {}, 400, "JSON"),
        (b" " * (LARGEST + 1), {}, 413, "at most"),
        (ASKED, {"Content-Type": "text/plain"}, 415, "application/json"),
        (ASKED, {"Host": "evil.example:7860"}, 403, "this machine alone"),
    ],
)
def test_what_is_no_question_is_refused(
    page: Server, body: Any, headers: dict[str, str], status: int, words: str
) -> None:
    found, (answer,) = request(page, body, headers=headers)
    assert found == status and words in answer["error"]
    assert request(page, b"", "/other", "GET")[0] == 404


@pytest.mark.slow
def test_a_client_that_hangs_up_frees_the_models(page: Server) -> None:
    body = json.dumps(ASKED).encode()
    with socket.create_connection(page.server_address[:2]) as client:
        client.sendall(b"POST /api/reply HTTP/1.1\r\nHost: 127.0.0.1:1\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert client.recv(10) == b"HTTP/1.0 2"
    assert request(page, ASKED)[0] == 200


def test_a_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be used .*choose another --port"):
            Server(None, port)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(
    tiny_run: Path, warm_python: str, pipeline_command: Callable[..., Any]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [warm_python, "-m", "pipeline", "chat", str(tiny_run), "--web", "--port", port]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line == f"http://127.0.0.1:{port} (this machine alone); Ctrl-C ends it\n", process.stderr.read()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10):
            pass
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.stdout.close()
        process.stderr.close()
    assert "leave --base out" in pipeline_command("chat", str(tiny_run), "--web", "--base", code=2).stderr
    assert "give --web too" in pipeline_command("chat", str(tiny_run), "--port", "1", code=2).stderr
    assert "no run directory" in pipeline_command("chat", str(tiny_run.parent), "--web", code=2).stderr


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_in_a_browser(page: Server) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        view = browser.new_page()
        faults: list[str] = []
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        view.goto(page.address)
        assert "models/embedded" in view.locator("#name").inner_text()
        for number, thinking in enumerate((True, False)):
            view.locator("#thinking").set_checked(thinking)
            view.locator("#text").fill("What is 17 + 25? <b>x</b>")
            view.locator("#text").press("Enter")
            expect(view.locator("[data-done='1']")).to_have_count(2 * (number + 1), timeout=60_000)
            for which in ("base", "tuned"):
                last = view.locator(f"#{which} .assistant").last
                assert last.locator(".answer").inner_text().strip()
                assert last.locator("details").count() == thinking
                if thinking:
                    assert not last.locator(".thought").is_visible()  # folded until it is asked for
                    last.locator("summary").click()
                    assert last.locator(".thought").inner_text().strip()
        assert view.locator("#base .user b").count() == 0  # what is typed or written is text, never HTML
        view.locator("#clear").click()
        assert view.locator(".message").count() == 0
        view.locator("#text").fill("17 + 25 " * 2000)
        view.locator("#send").click()
        expect(view.locator(".error")).to_have_count(2)
        assert "more than the model has room for" in view.locator("#tuned .error").inner_text()
        assert [fault for fault in faults if "400" not in fault] == []
        browser.close()
