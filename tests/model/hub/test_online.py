"""Models from a hub: a Hugging Face of our own on this machine says what there is, and sends it."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tiny_llama import TOKENS, Tiny

from pipeline.core.errors import UserError
from pipeline.model.hub import convert, fetch, known, online

COMMIT = "c0ffee" + "0" * 34
NAME = "someone/tiny"


class Hub:
    """What the server holds; ``lies``: files that are sent with other bytes than it says."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lies: set[str] = set()
        self.status = 200
        self.error = ""
        self.sent: list[str] = []

    def listing(self) -> bytes:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 1}
                if name.endswith(".safetensors")
                else None,
            }
            for name, data in self.files.items()
        ]
        card = {"license": "mit"}
        return json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings, "cardData": card}).encode()

    def tree(self) -> bytes:
        """The same in the form of another of the hub's answers."""
        entries = json.loads(self.listing())["siblings"]
        files = [{"type": "file", "oid": "0" * 40, "path": e["rfilename"], "size": e["size"]} for e in entries]
        return json.dumps(files).encode()


@pytest.fixture
def hub(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny model; the only one that the libraries know."""
    state = Hub()
    made = tmp_path / "made"
    convert.convert(tiny.file, made, TOKENS, tiny.package.encodings)
    state.files = {path.name: path.read_bytes() for path in made.iterdir()}
    state.files |= {"README.md": b"x", "onnx/model.onnx": b"x", "pytorch_model.bin": b"x"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/tree/" in path:
                self.answer(state.tree(), {"Content-Type": "application/json"})
                return
            if path.startswith("/api/models/"):
                if state.status != 200:
                    self.answer(b"{}", {"X-Error-Code": state.error}, state.status)
                else:
                    self.answer(state.listing(), {})
                return
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            data = state.files.get(name)
            if data is None:
                self.answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
                return
            if self.command == "GET":
                state.sent.append(name)
            body = bytes(len(data)) if name in state.lies else data
            etag = hashlib.sha256(data).hexdigest()
            self.answer(body, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "ENDPOINT", address)  # read when the library is imported
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(known, "known_models", lambda: {"tiny": tiny.known})
        monkeypatch.chdir(tmp_path)
        yield state
        httpd.shutdown()


def test_a_model_by_its_own_name(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    folder, record, new = fetch.fetch(NAME)
    assert new and folder == Path("outputs/models/tiny") and record["commit"] == COMMIT
    assert "licence mit; " in capsys.readouterr().err
    assert "pytorch_model.bin" not in hub.sent and "onnx/model.onnx" not in hub.sent
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in hub.files} == {
        name: data for name, data in hub.files.items() if online.wanted(name)
    }
    hub.sent.clear()
    hub.status = 500  # nobody is asked the second time
    assert fetch.fetch(NAME) == (folder, record, False) and not hub.sent


def test_a_known_model_from_a_hub(hub: Hub) -> None:
    _, record, _ = fetch.fetch("tiny", origin="huggingface")
    assert (record["model"], record["name"], record["from"]) == ("tiny", NAME, "huggingface")
    with pytest.raises(UserError, match="holds tiny from huggingface"):
        fetch.fetch("tiny", origin="package")


def test_a_file_that_comes_over_damaged_is_removed_and_the_next_try_goes_on(hub: Hub) -> None:
    hub.lies.add("model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors came over damaged"):
        fetch.fetch(NAME)
    assert not Path("outputs/models/tiny").exists()
    hub.lies.clear()
    hub.sent.clear()
    assert fetch.fetch(NAME)[2]
    assert hub.sent == ["model.safetensors"]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, "RepoNotFound", "does not exist there, or is private"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (404, "RevisionNotFound", "has no revision 'v9'"),
        (503, "", "cannot be fetched: HfHubHTTPError"),
    ],
)
def test_what_the_hub_answers_is_passed_on(hub: Hub, status: int, error: str, words: str) -> None:
    hub.status, hub.error = status, error
    with pytest.raises(UserError, match=words):
        fetch.fetch(NAME, revision="v9")


def test_pickle_alone_is_refused_before_anything_is_fetched(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(UserError, match="in pickle files alone"):
        fetch.fetch(NAME)
    assert not hub.sent and not Path("outputs").exists()


@pytest.mark.parametrize("name", ["a/b/c", "../x", "a/..", "https://x/y"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match="is no name of a hub's model"):
        online.look(name, "huggingface")


def test_modelscope_lists_and_is_asked_for_what_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its library is stood in for: what is passed to it, and what becomes of its answers."""
    import modelscope
    from modelscope.hub.api import HubApi
    from modelscope_hub.errors import NotExistError

    listing = [
        {"Path": "config.json", "Size": 2},
        {"Path": "model.safetensors", "Size": 3},
        {"Path": "a.bin", "Size": 9},
    ]
    monkeypatch.setattr(online, "require_hub", lambda *_: None)
    monkeypatch.setattr(HubApi, "get_model", lambda self, name, revision: {"license": "apache-2.0"})
    monkeypatch.setattr(HubApi, "get_model_files", lambda self, name, revision, recursive: listing)
    remote = online.look(NAME, "modelscope")
    assert (remote.licence, remote.bytes, set(remote.sizes)) == ("apache-2.0", 5, {"config.json", "model.safetensors"})

    def sent(name: str, revision: str, local_dir: str, allow_patterns: list[str]) -> None:
        assert (name, sorted(allow_patterns)) == (NAME, ["config.json", "model.safetensors"])
        (Path(local_dir) / "config.json").write_text("{}")
        (Path(local_dir) / "model.safetensors").write_text("ab")  # a byte is missing

    monkeypatch.setattr(modelscope, "snapshot_download", sent)
    with pytest.raises(UserError, match=r"model.safetensors came over damaged \(2 of 3 bytes"):
        online.download(remote, tmp_path)

    def absent(*_: object, **__: object) -> None:
        raise NotExistError("no such model")

    monkeypatch.setattr(HubApi, "get_model", absent)
    with pytest.raises(UserError, match="ModelScope.* does not exist there"):
        online.look(NAME, "modelscope")


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match="cannot be reached from here"):
        online.look(NAME, "huggingface")
