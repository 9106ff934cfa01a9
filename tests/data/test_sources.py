"""Rows come from files, folders, hubs and generators alike: all of them, in order, with the place where each stood."""

from __future__ import annotations

import csv
import datetime
import gzip
import http.server
import json
import math
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from ugly import zstd

from pipeline.core.errors import UserError
from pipeline.core.hubs import require_hub
from pipeline.data import sources
from pipeline.data.corpora import GENERATORS
from pipeline.data.sources import benchmark_source, content_key, read_rows, require_source
from pipeline.settings import BenchmarkSettings, SourceSettings

ROWS = [{"instruction": f"问题 {i}", "output": "x" * i} for i in range(5)]


def source(path: Path | str, **changes: object) -> SourceSettings:
    values = {"name": "s", "kind": "chat", "source": "local", "path": str(path), "share": 1.0}
    return SourceSettings.model_validate(values | changes)


def benchmark(path: Path | str, **changes: object) -> BenchmarkSettings:
    return BenchmarkSettings.model_validate({"name": "b", "source": "local", "path": str(path)} | changes)


def write_all_formats(folder: Path) -> list[str]:
    """The same five rows in every readable dress, one in a folder below; returns the names in reading order."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    (folder / "below").mkdir()
    (folder / "below" / "a.jsonl").write_bytes(lines)
    (folder / "b.NDJSON").write_bytes(lines)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines[:50]) + gzip.compress(lines[50:]))  # two members
    (folder / "d.jsonl.zst").write_bytes(zstd(lines[:50]) + zstd(lines[50:]))  # two frames
    (folder / "e.json").write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    (folder / "f.json.zstd").write_bytes(zstd(json.dumps({"data": ROWS}).encode()))
    for name, delimiter in (("g.csv", ","), ("h.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "i.parquet", row_group_size=2)
    (folder / "readme.md").write_text("not a row", encoding="utf-8")
    (folder / ".hidden.jsonl").write_bytes(lines)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jsonl").write_bytes(lines)
    tail = ["c.jsonl.gz", "d.jsonl.zst", "e.json", "f.json.zstd", "g.csv", "h.tsv", "i.parquet"]
    return ["b.NDJSON", "below/a.jsonl", *tail]


# --- files and folders --------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    names = write_all_formats(tmp_path)
    rows = list(read_rows(source(tmp_path)))
    first = {"g.csv": 2, "h.tsv": 2}  # the header is line 1
    assert [(r.file, r.line) for r in rows] == [(n, i + first.get(n, 1)) for n in names for i in range(5)]
    assert [r.data for r in rows] == ROWS * len(names)
    for name in names:
        assert [r.data for r in read_rows(source(tmp_path / name))] == ROWS
        assert {r.file for r in read_rows(source(tmp_path / name))} == {Path(name).name}


def test_skip_and_rows_cut_out_a_part(tmp_path: Path) -> None:
    names = write_all_formats(tmp_path)
    everything = list(read_rows(source(tmp_path)))
    for skip in range(len(everything) + 2):
        assert list(read_rows(source(tmp_path), skip=skip)) == everything[skip:] or skip > len(everything)
        assert list(read_rows(source(tmp_path, rows=7), skip=skip)) == everything[:7][skip:]
    for name in names:
        assert len(list(read_rows(source(tmp_path / name, rows=3)))) == 3


def test_rows_counts_good_and_bad_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a":1}\nbroken\n{"a":2}\n{"a":3}\n', encoding="utf-8")
    assert [r.line for r in read_rows(source(tmp_path, rows=3))] == [1, 2, 3]


def test_jsonl_keeps_line_numbers_and_reports_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \n[1]\n"\xff"\n{"a": 2}\n')
    rows = list(read_rows(source(path)))
    assert [(r.line, r.data) for r in rows] == [(1, {"a": 1}), (3, None), (4, None), (5, None), (6, {"a": 2})]
    assert [r.reason for r in rows] == ["", "broken_json", "not_an_object", "not_utf8", ""]


def test_csv_names_columns_without_a_name_and_trims_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n, text ,b\n0,x,y\n", encoding="utf-8")
    (row,) = read_rows(source(tmp_path / "a.csv"))
    assert (row.line, row.data) == (3, {"column_1": "0", "text": "x", "b": "y"})


def test_parquet_gives_nested_values_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4, 5)
    row = {"turns": [{"role": "user", "n": None}], "score": math.nan, "when": when, "raw": b"\xff", "big": 2**63 - 1}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (found,) = read_rows(source(tmp_path))
    assert repr(found.data) == repr(row)


def test_parquet_values_that_python_cannot_hold_cost_only_their_row(tmp_path: Path) -> None:
    bad_text = pyarrow.array([b"good", b"caf\xe9", b"fine"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"a": bad_text}), tmp_path / "a.parquet")
    far = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"a": far}), tmp_path / "b.parquet")
    rows = [(r.file, r.line, r.reason) for r in read_rows(source(tmp_path))]
    assert rows == [
        ("a.parquet", 1, ""),
        ("a.parquet", 2, "not_utf8"),
        ("a.parquet", 3, ""),
        ("b.parquet", 1, ""),
        ("b.parquet", 2, "unreadable_value"),
    ]


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'a' twice"):
        list(read_rows(source(tmp_path)))


def test_links_to_files_and_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.jsonl").write_text('{"a":1}\n', encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "near").symlink_to("../far")
    (tmp_path / "data" / "b.jsonl").symlink_to("../far/a.jsonl")
    assert [r.file for r in read_rows(source(tmp_path / "data"))] == ["b.jsonl", "near/a.jsonl"]
    (tmp_path / "data" / "again").symlink_to("../far")
    with pytest.raises(UserError, match="leads again to"):
        require_source(source(tmp_path / "data"))


def test_content_key_follows_content_not_path(tmp_path: Path) -> None:
    a, b = tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"
    a.parent.mkdir()
    b.parent.mkdir()
    a.write_text('{"a":1}\n', encoding="utf-8")
    b.write_text('{"a":1}\n', encoding="utf-8")
    assert content_key(source(a)) == content_key(source(b))
    assert content_key(source(a)) != content_key(source(a, rows=1))
    b.write_text('{"a":2}\n', encoding="utf-8")
    assert content_key(source(a)) != content_key(source(b))
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text('{"a":1}\n', encoding="utf-8")
    assert content_key(source(tmp_path / "x")) == content_key(source(tmp_path / "y"))
    (tmp_path / "y" / "a.jsonl").rename(tmp_path / "y" / "c.jsonl")  # the name is part of what is read: SourceRow.file
    assert content_key(source(tmp_path / "x")) != content_key(source(tmp_path / "y"))
    (tmp_path / "x" / "notes.txt").write_text("changes nothing", encoding="utf-8")
    assert content_key(source(tmp_path / "x")) == content_key(source(tmp_path / "x"), root=None)


def test_a_benchmark_is_read_as_a_source_is(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1+1?"}\n', encoding="utf-8")
    settings = benchmark(tmp_path / "gsm8k.jsonl")
    assert [r.data for r in read_rows(settings)] == [{"question": "1+1?"}]
    require_source(settings, root=str(tmp_path))
    assert content_key(settings) == content_key(source(tmp_path / "gsm8k.jsonl", split="test"))
    there = benchmark_source(benchmark("openai/gsm8k", source="huggingface", subset="main", revision="r"))
    assert (there.path, there.subset, there.split, there.revision) == ("openai/gsm8k", "main", "test", "r")


# --- generators ---------------------------------------------------------------------------------------------------------


def test_generated_rows_can_be_skipped_and_are_as_many_as_asked_for() -> None:
    rows = list(read_rows(source("finetome_like", source="generated", rows=6, seed=3)))
    assert [r.data for r in rows] == list(GENERATORS["finetome_like"](6, 3))
    assert {(r.file, r.line) for r in rows} == {("finetome_like", i) for i in range(1, 7)}
    assert list(read_rows(source("finetome_like", source="generated", rows=6, seed=3), skip=4)) == rows[4:]


@pytest.mark.parametrize("call", [require_source, lambda s: list(read_rows(s))])
def test_generators_that_cannot_run(call: Any) -> None:
    with pytest.raises(UserError, match="Did you mean 'finetome_like'"):
        call(source("finetome_lik", source="generated", rows=1))
    with pytest.raises(UserError, match="needs rows"):
        call(source("finetome_like", source="generated"))


# --- hubs ---------------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/name"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face seems within reach, and tells COMMIT for any dataset."""
    monkeypatch.setattr(sources, "require_hub", lambda *_: None)
    monkeypatch.setattr(sources, "_commit", lambda *_: COMMIT)


def hub(**changes: object) -> SourceSettings:
    return source(NAME, **({"source": "huggingface"} | changes))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.usefixtures("online")
def test_huggingface_rows(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    asked: dict[str, Any] = {}

    def load(path: str, **arguments: Any) -> Any:
        asked.update(arguments, path=path)
        rows = datasets.Dataset.from_list(ROWS)
        return rows.to_iterable_dataset() if arguments["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    settings = hub(subset="main", split="cot", streaming=streaming)
    rows = list(read_rows(settings))
    assert asked == {"path": NAME, "name": "main", "split": "cot", "revision": COMMIT, "streaming": streaming}
    assert [(r.file, r.line, r.data) for r in rows] == [(NAME, i, row) for i, row in enumerate(ROWS, 1)]
    assert list(read_rows(settings, skip=3)) == rows[3:]
    assert list(read_rows(settings.model_copy(update={"rows": 4}), skip=3)) == rows[3:4]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([]))
    with pytest.raises(UserError, match="holds no rows"):
        list(read_rows(settings))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "cot"}, r"has no split 'cot'\. Known: \['train'\]"),
        ({"subset": "mian"}, r"has no subset 'mian'\. Known: \['main', 'other'\]"),
        ({"subset": None}, r"several subsets; name one as subset\. Known: \['main', 'other'\]"),
    ],
)
@pytest.mark.usefixtures("online")
def test_what_the_library_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool, changes: dict[str, Any], words: str
) -> None:
    """The complaints are the library's own: it loads a folder that is laid out as a dataset on the hub is."""
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    configs = "".join(f"- config_name: {name}\n  data_files: train.jsonl\n" for name in ("main", "other"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    load = datasets.load_dataset

    def load_folder(path: str, revision: str, **arguments: Any) -> Any:
        return load(str(tmp_path), cache_dir=str(tmp_path / "cache"), **arguments)

    monkeypatch.setattr(datasets, "load_dataset", load_folder)
    assert [r.data for r in read_rows(hub(subset="main", streaming=streaming))] == [{"a": 1}]
    with pytest.raises(UserError, match=words):
        list(read_rows(hub(**({"subset": "main", "streaming": streaming} | changes))))


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"),
            "does not exist there, or is private",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."),
            "gated: accept its terms",
        ),
        (datasets.exceptions.DatasetNotFoundError("Revision 'v9' doesn't exist for dataset"), "no revision 'v9'"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (
            caused_by(datasets.exceptions.DatasetGenerationError("An error occurred"), OSError(28, "No space left")),
            "the disk is full",
        ),
        (ConnectionError("Couldn't reach 'x' on the Hub"), "cannot be read: ConnectionError: Couldn't reach"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "scripts are no longer supported"),
        (pyarrow.ArrowInvalid("bad\nparquet"), "ArrowInvalid: bad parquet"),
        (KeyError(), "cannot be read: KeyError: KeyError"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.usefixtures("online")
def test_failures_of_a_hub(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, late: bool) -> None:
    def fail() -> Iterator[dict[str, Any]]:
        yield {"a": 1}
        raise error

    def load(*_: Any, **__: Any) -> Any:
        if late:
            return fail()
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows(hub(revision="v9"))
    if late:
        assert next(rows).data == {"a": 1}
    with pytest.raises(UserError, match=f"source 's' \\({NAME} from Hugging Face\\).*{words}"):
        next(rows)


@pytest.mark.parametrize("path", ["../data", "/etc", "a/b/c", "a b", "https://x.org/a", "hf://datasets/a", "", ".."])
@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_a_path_is_no_name_of_a_dataset(path: str, where: str) -> None:
    with pytest.raises(UserError, match="is no name of a dataset|lies in the working directory"):
        require_source(source(path, source=where))


def test_a_folder_never_stands_in_for_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="working directory.*source: local"):
        require_source(hub())


class Modelscope:
    """Stands in for modelscope's MsDataset."""

    asked: dict[str, Any]

    @classmethod
    def load(cls, path: str, **arguments: Any) -> Any:
        cls.asked = {**arguments, "path": path}
        if arguments["use_streaming"]:
            return iter(ROWS)
        return types.SimpleNamespace(to_hf_dataset=lambda: datasets.Dataset.from_list(ROWS))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.usefixtures("online")
def test_modelscope_rows(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    module = types.ModuleType("modelscope.msdatasets")
    module.MsDataset = Modelscope  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.msdatasets", module)
    settings = hub(source="modelscope", subset="main", streaming=streaming)
    assert [r.data for r in read_rows(settings, skip=1)] == ROWS[1:]
    expected = {"subset_name": "main", "split": "train", "version": "master", "use_streaming": streaming}
    assert Modelscope.asked == {"path": NAME, **expected}


@pytest.mark.usefixtures("online")
def test_modelscope_streaming_must_not_redirect_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    def redirected(*_: Any, **__: Any) -> None: ...

    redirected.__module__ = "modelscope.msdatasets.utils.hf_datasets_util"
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", redirected)
    with pytest.raises(UserError, match="Set streaming: false there"):
        list(read_rows(hub(revision=COMMIT)))


def test_hub_keys(monkeypatch: pytest.MonkeyPatch, online: None) -> None:
    now = content_key(hub())
    assert now == content_key(hub(revision="main")) == content_key(hub(revision=COMMIT))
    monkeypatch.setattr(sources, "_commit", lambda *_: COMMIT[::-1])  # the dataset moves on
    assert content_key(hub()) != now == content_key(hub(revision=COMMIT))
    others = [
        hub(subset="x"),
        hub(split="x"),
        hub(rows=3),
        hub(source="modelscope"),
        hub(source="modelscope", revision="v1"),
    ]
    assert len({content_key(other) for other in others} | {now}) == 6
    assert content_key(hub(source="modelscope", revision="v1")) == content_key(hub(source="modelscope", revision="v1"))
    unpinned = content_key(hub(source="modelscope"))
    monkeypatch.setattr(sources, "_UNRESOLVED", "another process")
    assert content_key(hub(source="modelscope")) != unpinned


def test_a_pinned_key_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert content_key(hub(revision=COMMIT)) == content_key(hub(revision=COMMIT))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        content_key(hub())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, str]]]:
    """A hub on this machine. The answers by path: status, and the error code or commit to tell."""
    answers: dict[str, tuple[int, str]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers[self.path]
            body = json.dumps({"id": NAME, "sha": text}).encode()
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Code", text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_port}")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        sources._commit.cache_clear()
        yield answers
        httpd.shutdown()
    sources._commit.cache_clear()


def test_the_commit_is_asked_of_the_hub_once(server: dict[str, tuple[int, str]]) -> None:
    server[f"/api/datasets/{NAME}"] = (200, COMMIT)
    server[f"/api/datasets/{NAME}/revision/v1"] = (200, COMMIT[::-1])
    require_source(hub())
    key = content_key(hub())
    assert key == content_key(hub(revision=COMMIT)) and content_key(hub(revision="v1")) == content_key(
        hub(revision=COMMIT[::-1])
    )
    server.clear()  # a second question would have no answer
    assert content_key(hub()) == key


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "does not exist there, or is private"),
        (403, "GatedRepo", "gated: accept its terms"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (503, "", "cannot be read: HfHubHTTPError"),
    ],
)
def test_what_the_hub_answers_is_passed_on(
    server: dict[str, tuple[int, str]], status: int, code: str, words: str
) -> None:
    server[f"/api/datasets/{NAME}/revision/v9"] = (status, code)
    for call in (content_key, lambda s: list(read_rows(s))):
        with pytest.raises(UserError, match=words):
            call(hub(revision="v9"))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://192.0.2.1"])  # refused; reserved: nobody answers
@pytest.mark.parametrize("call", [require_source, content_key, lambda s: list(read_rows(s))])
def test_hub_out_of_reach_fails_within_five_seconds(monkeypatch: pytest.MonkeyPatch, endpoint: str, call: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached.*offline.*source: local"):
        call(source("mlabonne/FineTome-100k", source="huggingface"))
    assert time.monotonic() - started < 5


def test_offline_switch_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="'x' .* Hugging Face, but HF_HUB_OFFLINE is set"):
        require_hub("huggingface", "model 'x'", "Do this.")


# --- real files ---------------------------------------------------------------------------------------------------------

REAL = {
    "eval/gsm8k_train.jsonl": 7473,
    "eval/gsm8k_test.jsonl": 1319,
    "eval/ifeval_input_data.jsonl": 541,
    "sft/alpaca_zh_demo.json": 1000,
    "sft/alpaca_en_demo.json": 999,
    "sft/identity.json": 91,
    "reason/gsm8k_gemini_cot_level2.json": 7433,
    "tools/glaive_toolcall_en_demo.json": 300,
    "tools/glaive_toolcall_zh_demo.json": 300,
    "pref/dpo_en_demo.json": 300,
    "pref/dpo_zh_demo.json": 300,
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_come_through_whole(shared_data: Path, name: str) -> None:
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = list(read_rows(source(path), root=str(shared_data)))
    assert len(rows) == REAL[name] and all(row.data for row in rows)
    text = path.read_text(encoding="utf-8")
    plain = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    assert [row.data for row in rows] == plain


def test_a_folder_of_real_files(shared_data: Path) -> None:
    rows = list(read_rows(source(shared_data / "sft")))
    names = sorted(os.path.basename(name) for name in REAL if name.startswith("sft/"))
    assert list(dict.fromkeys(row.file for row in rows)) == names and len(rows) == 2090
