from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.mix import Mix, Pool, build_mix, dataset_fingerprint, mix_from_recipe
from pipeline.data.pools import build_pool
from pipeline.data.prepare import Preparation
from pipeline.data.stored_mix import load_mix, save_mix
from pipeline.settings import UNITS, Recipe, SourceSettings


def source(name: str, share: float, path: str = "finetome_like", **changes: Any) -> SourceSettings:
    kind, layout = ("chat", "sharegpt") if path == "finetome_like" else ("reasoning", "openmathreasoning")
    values = {
        "name": name,
        "kind": kind,
        "source": "generated",
        "path": path,
        "rows": 600,
        "format": layout,
        "share": share,
    }
    return SourceSettings.model_validate(values | changes)


def recipe(share: float = 0.5, **changes: Any) -> Recipe:
    sources = [source("chat", share), source("math", 1 - share, "openmath_like")]
    # Rows made from templates are alike by design.
    return Recipe.model_validate({"name": "test", "sources": sources, "group_near_duplicates": False} | changes)


@pytest.fixture(scope="module")
def form() -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(Path(__file__).resolve().parents[2] / "models" / "embedded"))


@pytest.fixture(scope="module")
def pools(form: ChatFormat) -> list[Pool]:
    return [build_pool(Preparation(s, form, 256)) for s in recipe().sources]


def shares(mix: Mix, unit: str) -> dict[str, float]:
    """Shares counted anew from the examples, without the manifest."""
    weight: Counter[str] = Counter()
    for row in mix.train:
        weight[row["source"]] += {
            "tokens": len(row["input_ids"]),
            "loss_tokens": sum(label != -100 for label in row["labels"]),
        }[unit]
    total = sum(weight.values())
    return {name: count / total for name, count in weight.items()}


@pytest.mark.parametrize("unit", ["tokens", "loss_tokens"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_share_is_met_in_tokens(pools: list[Pool], unit: str, share: float) -> None:
    mix = build_mix(recipe(share, unit=unit), pools, seed=1)
    assert shares(mix, unit)["chat"] == pytest.approx(share, abs=0.01)
    assert mix.manifest["sources"][0]["achieved"][unit] == pytest.approx(shares(mix, unit)["chat"], abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_share_is_met_in_rows_including_the_ends(pools: list[Pool], share: float) -> None:
    mix = build_mix(recipe(share, unit="rows", total=400), pools, seed=1)
    assert [s["rows"] for s in mix.manifest["sources"]] == [round(400 * share), round(400 * (1 - share))]
    present = set(mix.train["source"])
    assert present == {name for name, s in (("chat", share), ("math", 1 - share)) if s > 0}
    assert set(mix.validation["source"]) == present


def test_a_row_of_several_answers_counts_once(pools: list[Pool]) -> None:
    mix = build_mix(recipe(1.0, unit="rows", total=300), pools, seed=1)
    entry = mix.manifest["sources"][0]
    assert entry["rows"] == 300 < entry["examples"] == len(mix.train)


def test_short_source_is_named_with_the_gap(pools: list[Pool]) -> None:
    with pytest.raises(UserError, match=r"'chat' has \d+ of 1,000 rows \(\d+ short\).*Lower total to") as caught:
        build_mix(recipe(0.5, total=2000), pools, seed=1)
    largest = int(re.search(r"Lower total to ([\d,]+),", str(caught.value))[1].replace(",", ""))  # type: ignore[index]
    assert len(build_mix(recipe(0.5, total=largest), pools, seed=1).train) > 0
    with pytest.raises(UserError):
        build_mix(recipe(0.5, total=largest + 3), pools, seed=1)


def test_repeat_on_request_says_so(pools: list[Pool]) -> None:
    mix = build_mix(recipe(0.5, total=2000, on_shortage="repeat"), pools, seed=1)
    assert [s["rows"] for s in mix.manifest["sources"]] == [1000, 1000]
    assert mix.manifest["sources"][0]["rows_repeated"] > 400
    assert any("'chat' is too small" in w for w in mix.manifest["warnings"])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_same_seed_same_bytes_on_any_number_of_processes(
    workers: int, form: ChatFormat, pools: list[Pool], tmp_path: Path
) -> None:
    arguments = {"max_seq_length": 256, "seed": 5}
    one = build_mix(recipe(), pools, seed=5)
    cached = [mix_from_recipe(recipe(), form, cache=tmp_path, workers=workers, **arguments) for _ in range(2)]
    fingerprints = {m.manifest["fingerprint"] for m in (one, *cached)}
    assert len(fingerprints) == 1
    assert build_mix(recipe(), pools, seed=6).manifest["fingerprint"] not in fingerprints


def test_validation_never_shares_an_example_with_training(form: ChatFormat) -> None:
    # The chat corpus repeats itself; equal rows must fall on one side.
    mix = mix_from_recipe(recipe(), form, max_seq_length=256, seed=1, validation_fraction=0.2)
    rows = [{tuple(ids) for ids in part["input_ids"]} for part in (mix.train, mix.validation)]
    repeated = len(mix.train) - len(rows[0])
    assert repeated > 0 and rows[1] and not rows[0] & rows[1]


def test_accounting_and_rejected_rows(form: ChatFormat, tmp_path: Path) -> None:
    good = {"instruction": "hello", "output": "Hello!"}
    lines = [
        json.dumps(good),
        "{broken",
        json.dumps({"instruction": "no answer"}),
        json.dumps(good | {"output": "<think>never closed"}),
        json.dumps(good | {"output": "word " * 400}),
        *[json.dumps({"instruction": f"hello {i}", "output": f"Hello {i}!"}) for i in range(40)],
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    own = source("own", 1.0, source="local", path=str(tmp_path / "rows.jsonl"), format="alpaca", rows=None)
    mix = mix_from_recipe(Recipe(name="r", sources=[own]), form, max_seq_length=128, seed=1, validation_fraction=0.1)
    entry = mix.manifest["sources"][0]
    assert (entry["read"], entry["kept"]) == (45, 41)
    assert entry["rejected"] == {"broken_json": 1, "missing_column": 1, "too_long": 1, "unclosed_think": 1}
    assert [(r["file"], r["line"], r["reason"]) for r in mix.rejected] == [
        ("rows.jsonl", 2, "broken_json"),
        ("rows.jsonl", 3, "missing_column"),
        ("rows.jsonl", 4, "unclosed_think"),
        ("rows.jsonl", 5, "too_long"),
    ]
    assert max(map(len, mix.train["input_ids"])) <= 128
    assert entry["over_limit"]["rows"] == pytest.approx(1 / 42) and entry["over_limit"]["loss_tokens"] > 0.5
    save_mix(mix, tmp_path / "mix")
    written = [
        json.loads(line) for line in (tmp_path / "mix" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert written == mix.rejected


def test_a_source_without_a_share_may_have_no_row_at_all(form: ChatFormat, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    unused = source("own", 0.0, source="local", path=str(tmp_path / "wrong.jsonl"), format="alpaca", rows=None)
    mix = mix_from_recipe(Recipe(name="r", sources=[source("chat", 1.0), unused]), form, max_seq_length=256, seed=1)
    entry = mix.manifest["sources"][1]
    assert (entry["read"], entry["kept"], entry["rows"]) == (2, 0, 0) and entry["rejected"] == {"missing_column": 2}
    assert entry["over_limit"] == {"rows": 0.0, "loss_tokens": 0.0}
    save_mix(mix, tmp_path / "mix")
    assert load_mix(tmp_path / "mix").manifest == mix.manifest


def test_an_empty_side_has_its_columns_when_it_is_read_again(form: ChatFormat, tmp_path: Path) -> None:
    """A validation split of few rows may come out empty."""
    mix = mix_from_recipe(recipe(total=20), form, max_seq_length=512, seed=1, validation_fraction=0)
    save_mix(mix, tmp_path / "mix")
    again = load_mix(tmp_path / "mix")
    assert len(again.validation) == 0 and again.validation.column_names == again.train.column_names


def test_empty_and_useless_sources(form: ChatFormat, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    local = {"source": "local", "rows": None, "format": "alpaca"}
    with pytest.raises(UserError, match="empty.jsonl is empty"):
        build_pool(Preparation(source("own", 1.0, **(local | {"path": str(tmp_path / "empty.jsonl")})), form, 256))
    (tmp_path / "wrong.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="2 rows.*2 × missing_column.*wrong.jsonl:1.*alpaca"):
        wrong = source("own", 1.0, **(local | {"path": str(tmp_path / "wrong.jsonl")}))
        mix_from_recipe(Recipe(name="r", sources=[wrong]), form, max_seq_length=256, seed=1)


def test_unknown_format_is_refused_before_reading(form: ChatFormat) -> None:
    bad = source("own", 1.0, format="alpacca", source="local", path="nowhere")
    with pytest.raises(UserError, match="'alpacca'.*Did you mean 'alpaca'"):
        mix_from_recipe(Recipe(name="r", sources=[bad]), form, max_seq_length=256, seed=1)


def test_saved_mix_comes_back_and_tampering_is_seen(pools: list[Pool], tmp_path: Path) -> None:
    mix = build_mix(recipe(total=100), pools, seed=1)
    save_mix(mix, tmp_path)
    back = load_mix(tmp_path)
    assert dataset_fingerprint(back.train, back.validation) == mix.manifest["fingerprint"]
    assert back.manifest == mix.manifest
    back.train.select(range(10)).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(UserError, match="does not match its manifest"):
        load_mix(tmp_path)
    with pytest.raises(UserError, match="no finished mix"):
        load_mix(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["train.parquet", "validation.parquet", "rejected.jsonl"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_files_of_a_mix_are_seen(form: ChatFormat, tmp_path: Path, name: str, damage: str) -> None:
    mix = mix_from_recipe(recipe(total=60), form, max_seq_length=60, seed=1)
    assert len(mix.rejected) > 3
    save_mix(mix, tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "cut":
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged|does not match"):
        load_mix(tmp_path)


@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), unit=st.sampled_from(UNITS), seed=st.integers(0, 2**32 - 1), scale=st.floats(0.3, 0.9))
def test_any_share_is_met_within_one_percent_or_refused(
    pools: list[Pool], share: float, unit: str, seed: int, scale: float
) -> None:
    total = int(
        scale * min(sum(len(i) for i in p.examples["input_ids"]) for p in pools) / (1 if unit == "tokens" else 60)
    )
    wanted = recipe(share, unit=unit, total=max(total, 200))
    try:
        mix = build_mix(wanted, pools, seed=seed)
    except UserError as error:
        assert "short" in str(error)
        return
    achieved = mix.manifest["sources"][0]["achieved"][unit]
    assert abs(achieved - share) <= 0.01 or any("too small for a finer split" in w for w in mix.manifest["warnings"])
    assert sum(s["achieved"][unit] for s in mix.manifest["sources"]) == pytest.approx(1)
