"""A page in the browser that talks to a run: base and tuned side by side, either mode, replies as they are written.

In: a run. Out: one page and two addresses on this machine alone: ``/api/run`` says what is served, ``/api/reply`` takes a
conversation as JSON and answers with a line of JSON for each piece of the reply. The page holds the conversations; nothing of
them is stored here. The models write one reply at a time, the second column waits for the first.

The server is Python's own: Gradio, from version 5 on, wants older releases of pillow and starlette than the pinned ones.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.modes import Mode
from pipeline.data.conversations import Message
from pipeline.export.talk import Parts, Talker

HOST = "127.0.0.1"
PORT = 7860
LARGEST = 2**20  # bytes of a request
LARGEST_DISCARDED = 16 * 2**20  # bytes of a request that is refused for its length
SECONDS = 30.0  # for a request to arrive
PAGE = Path(__file__).parent / "templates" / "chat.html"
# The page loads nothing from elsewhere and is shown in no other page.
SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AskedMessage(_Asked):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning_content: str | None = None


class Question(_Asked):
    """What the page sends."""

    which: Literal["base", "tuned"]
    mode: Mode
    budget: Annotated[int, Field(ge=0)] | None = None  # tokens of reasoning; null: as many as the model likes
    messages: Annotated[list[AskedMessage], Field(min_length=1, max_length=1000)]


class _Refused(Exception):
    """A request that gets no reply: status and words."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """Listens; each request has a thread, the models have one lock."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    # port 0: any that is free. Raises UserError where it is in use.
    def __init__(
        self, talker: Talker, port: int, mode: Mode = "thinking", seed: int | None = None, budget: int | None = None
    ):
        self.talker, self.mode, self.seed, self.budget = talker, mode, seed, budget
        self.lock = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(f"{HOST}:{port} cannot be used ({error.strerror}); choose another --port.") from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def about(self) -> dict[str, Any]:
        """What the page shows of the run."""
        return {
            "model": self.talker.source.profile.model.name,
            "run": self.talker.source.folder.name,
            "modes": list(self.talker.style.modes),
            "mode": self.mode,
            "budget": self.budget,
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle is no news; everything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | socket.timeout):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = SECONDS
    server_version, sys_version = "chat", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is nobody else's business."""

    def do_GET(self) -> None:
        """The page, or what it shows of the run."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """A question; the reply comes as lines of JSON."""
        self._guarded(self._post)

    def _guarded(self, answer: Callable[[], None]) -> None:
        try:
            # A name that leads here from a page elsewhere (DNS rebinding) is not the page's own.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                raise _Refused(403, "this page answers on this machine alone")
            answer()
        except _Refused as refused:
            self._send(refused.status, "application/json", json.dumps({"error": str(refused)}).encode())

    def _get(self) -> None:
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path == "/api/run":
            self._send(200, "application/json", json.dumps(self.server.about()).encode())
        else:
            raise _Refused(404, "there is nothing here")

    def _post(self) -> None:
        if self.path != "/api/reply":
            raise _Refused(404, "there is nothing here")
        question = self._question()
        messages: list[Message] = [message.model_dump(exclude_none=True) for message in question.messages]
        with self.server.lock:
            talker = self.server.talker
            try:
                talker.style.require(question.mode)
                ids = talker.prompt_ids(messages, question.mode, question.which)
                talker.require_room(ids, question.which, question.mode, question.budget)
            except UserError as error:
                raise _Refused(400, str(error)) from error
            self._head(200, "application/x-ndjson")
            parts = Parts(talker.style.tags)

            def write(text: str) -> None:
                for kind, part in parts.feed(text):
                    self._line({kind: part})

            written = talker.reply(ids, question.which, question.mode, write, self.server.seed, question.budget)
            for kind, part in parts.end():
                self._line({kind: part})
            self._line({"done": written.message(talker.style.tags), "tokens": written.tokens, "cut": written.cut})

    def _question(self) -> Question:
        # A page elsewhere can send JSON here only after asking, which is never answered.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(411, "say the length")
        if int(length) > LARGEST:
            self._discard(int(length))
            self.close_connection = True
            raise _Refused(413, f"a request has at most {LARGEST:,} bytes")
        try:
            return Question.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise _Refused(400, f"{where}: {first['msg']}" if where else str(first["msg"])) from error

    def _discard(self, length: int) -> None:
        """Read what comes of a body that is too long, up to a bound: who is still sending does not see the answer."""
        left = min(length, LARGEST_DISCARDED)
        while left > 0 and (read := self.rfile.read(min(left, 2**16))):
            left -= len(read)

    def _line(self, data: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self.wfile.flush()

    def _head(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in SAFE.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)


def serve_page(server: Server, ready: Callable[[str], object]) -> None:
    """Serve the page until Ctrl-C; ``ready`` is called with its address, once the models are loaded."""
    with server:
        with server.talker.models.model("tuned"):
            pass  # the first question does not wait for it
        with contextlib.suppress(KeyboardInterrupt):  # whoever has read the address may press Ctrl-C at once
            ready(server.address)
            server.serve_forever()
