"""A step that takes much of a source is said aloud, with rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.chat_format import ChatFormat
from pipeline.data.describe import describe_mix
from pipeline.data.mix import mix_from_recipe
from pipeline.settings import Recipe


@pytest.mark.parametrize(("refusing", "warned"), [(2, False), (3, True), (9, True)])
def test_a_step_that_takes_more_than_a_tenth_warns_and_shows_five_rows(
    embedded_tokenizer: Any, tmp_path: Path, refusing: int, warned: bool
) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(20 - refusing)]
    rows += [
        {"prompt": f"Please {n}.", "completion": "I'm sorry, but I can't help with that."} for n in range(refusing)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"name": "own", "kind": "chat", "source": "local", "path": str(tmp_path / "rows.jsonl"), "share": 1.0}
    recipe = Recipe.model_validate({"name": "r", "sources": [source], "clean": {"refusals": True}})
    manifest = mix_from_recipe(recipe, ChatFormat(embedded_tokenizer), max_seq_length=512, seed=1).manifest
    warnings = [text for text in manifest["warnings"] if "refusals takes" in text]
    assert len(warnings) == warned
    if warned:
        assert f"own: refusals takes {refusing / 20:.0%} of the rows ({refusing} of 20)" in warnings[0]
        assert warnings[0].count("rows.jsonl:") == min(refusing, 5)
        assert f"rows.jsonl:{20 - refusing + 1} refusal: I'm sorry" in describe_mix(manifest)
