from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.lengths import difference, difference_text, lengths, lengths_text
from pipeline.data.mix import mix_from_recipe
from pipeline.data.pools import build_pool
from pipeline.data.prepare import Preparation
from pipeline.data.stored_mix import save_mix
from pipeline.settings import Recipe, SourceSettings


@pytest.fixture(scope="module")
def form(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


def source(name: str, share: float = 0.5, rows: int = 400, **changes: Any) -> SourceSettings:
    kind, layout, path = {
        "chat": ("chat", "sharegpt", "finetome_like"),
        "math": ("reasoning", "openmathreasoning", "openmath_like"),
    }[name]
    values = {"name": name, "kind": kind, "source": "generated", "path": path, "format": layout}
    return SourceSettings.model_validate(values | {"rows": rows, "share": share} | changes)


def test_lengths_agree_with_a_count_by_hand(form: ChatFormat) -> None:
    pools = [build_pool(Preparation(source(name), form, 256)) for name in ("chat", "math")]
    entries = lengths(pools, 100)
    assert [(e["source"], e["mode"]) for e in entries] == [("chat", "non_thinking"), ("math", "thinking")]
    for pool, entry in zip(pools, entries, strict=True):
        longest: dict[int, int] = {}
        loss: dict[int, int] = {}
        for example in pool.examples:
            number = example["row"]
            longest[number] = max(longest.get(number, 0), len(example["input_ids"]))
            loss[number] = loss.get(number, 0) + sum(label != -100 for label in example["labels"])
        assert entry["rows"] == len(longest) == sum(entry["histogram"]["rows"])
        assert entry["quantiles"]["1.0"] == max(longest.values())
        edges = entry["histogram"]["edges"]
        for low, high, rows in zip([0, *edges], edges, entry["histogram"]["rows"], strict=False):
            assert rows == sum(low < n <= high for n in longest.values())
        cost = next(c for c in entry["limits"] if c["limit"] == 100)
        over = [number for number, tokens in longest.items() if tokens > 100]
        assert cost["rows"] == pytest.approx(len(over) / len(longest))
        assert cost["loss_tokens"] == pytest.approx(sum(loss[n] for n in over) / sum(loss.values()))
    assert entries[1]["limits"][0]["rows"] > 0, "no limit cost anything, so nothing was checked"


def test_rows_over_the_limit_in_force_are_in_the_lengths(form: ChatFormat) -> None:
    wide, narrow = (lengths([build_pool(Preparation(source("math"), form, limit))], limit) for limit in (256, 64))
    assert wide[0]["histogram"] == narrow[0]["histogram"]
    text = lengths_text(narrow, 64)
    (marked,) = [line for line in text.splitlines() if "← the limit in force" in line]
    assert "a limit of     64 costs" in marked and "costs 0.0%" not in marked


def saved(folder: Path, form: ChatFormat, limit: int = 256, seed: int = 1, **changes: Any) -> Path:
    values = {"name": "r", "sources": [source("chat"), source("math")], "group_near_duplicates": False}
    recipe = Recipe.model_validate(values | {"total": 300} | changes)
    save_mix(mix_from_recipe(recipe, form, max_seq_length=limit, seed=seed), folder)
    return folder


def test_difference_of_two_mixes(form: ChatFormat, tmp_path: Path) -> None:
    a = saved(tmp_path / "a", form)
    more_chat = [source("chat", 0.8), source("math", 0.2)]
    b = saved(tmp_path / "b", form, limit=96, sources=more_chat)
    found = difference(a, b)
    assert not found["same"]
    assert found["settings"] == {"sources.chat.share": [0.5, 0.8], "sources.math.share": [0.5, 0.2]}
    for name, expected in (("chat", (150, 240)), ("math", (150, 60))):
        entry = found["sources"][name]
        counts = entry["examples"]
        manifests = [json.loads((f / "manifest.json").read_text(encoding="utf-8")) for f in (a, b)]
        examples = [next(s["examples"] for s in m["sources"] if s["name"] == name) for m in manifests]
        assert [counts["both"] + counts["only_a"], counts["both"] + counts["only_b"]] == examples
        assert [next(s["rows"] for s in m["sources"] if s["name"] == name) for m in manifests] == list(expected)
    assert (
        found["sources"]["math"]["rejected"]["too_long"][0] == 0 < found["sources"]["math"]["rejected"]["too_long"][1]
    )
    text = difference_text(found)
    assert "sources.chat.share: 0.5 → 0.8" in text and "rejected as too_long: 0 →" in text


def test_no_difference(form: ChatFormat, tmp_path: Path) -> None:
    a, b = saved(tmp_path / "a", form), saved(tmp_path / "b", form)
    found = difference(a, b)
    assert found["same"] and not found["settings"]
    assert {e["examples"]["only_a"] + e["examples"]["only_b"] for e in found["sources"].values()} == {0}
    assert difference_text(found) == "the same examples in the same order"
    other = difference(a, saved(tmp_path / "c", form, seed=2))
    assert not other["same"] and other["settings"] == {"seed": [1, 2]}


def test_a_folder_without_a_mix_is_refused(form: ChatFormat, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished mix"):
        difference(saved(tmp_path / "a", form), tmp_path / "nothing")
