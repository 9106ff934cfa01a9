"""A small server that speaks the OpenAI protocol, well or badly, in a thread of the test."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]  # status, and what the body holds


class FakeServer:
    """Renders prompts with ``prompt_ids`` and answers with ``reply``; a test changes what it wants wrong.

    Args:
        prompt_ids: (messages, mode) → ids, of the template that the server has.
        reply: (messages, mode) → a message of the assistant.
    """

    def __init__(self, prompt_ids: Callable[[Any, Any], list[int]], reply: Callable[[Any, str], dict[str, Any]]):
        self.prompt_ids, self.reply = prompt_ids, reply
        self.models = ["base", "tuned"]
        self.key = ""
        self.tokenize = self.usage = True
        self.finish = "stop"
        self.delay = 0.0
        self.before: Callable[[dict[str, Any]], Answer | None] = lambda body: (
            None
        )  # answers in the place of a completion
        self.asked: list[dict[str, Any]] = []  # bodies of completions
        self.open = self.most_open = 0
        self._lock = threading.Lock()
        self.url = ""

    def mode_of(self, body: dict[str, Any]) -> str:
        return "thinking" if (body.get("chat_template_kwargs") or {}).get("enable_thinking", True) else "non_thinking"

    def answer(self, path: str, body: dict[str, Any] | None, key: str | None) -> Answer:
        if self.key and key != f"Bearer {self.key}":
            return 401, {"error": {"message": f"Incorrect API key provided: {key}"}}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if path == "/tokenize" and self.tokenize and body is not None:
            return 200, {"tokens": self.prompt_ids(body["messages"], self.mode_of(body))}
        if path == "/v1/chat/completions" and body is not None:
            return self.complete(body)
        return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> Answer:
        with self._lock:
            self.asked.append(body)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            time.sleep(self.delay)
            instead = self.before(body)
            if instead is not None:
                return instead
            if body["model"] not in self.models:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            mode = self.mode_of(body)
            choice = {"index": 0, "finish_reason": self.finish, "message": self.reply(body["messages"], mode)}
            answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice]}
            if self.usage:
                answer["usage"] = {
                    "prompt_tokens": len(self.prompt_ids(body["messages"], mode)),
                    "completion_tokens": 7,
                }
            return 200, answer
        finally:
            with self._lock:
                self.open -= 1


@contextlib.contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Run it on a free port of this machine; ``fake.url`` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = fake.answer(self.path, body, self.headers.get("Authorization"))
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            with contextlib.suppress(OSError):  # the other side has gone
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
