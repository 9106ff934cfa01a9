"""What a setting changes, and in what two sets of settings differ."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline.settings import Profile, Section, load_profile
from pipeline.settings.compare import affected_by, affects, differing, flat, masked_keys, shortened


def keys(section: type[Section], prefix: str = "") -> list[str]:
    """Dotted keys of all settings, of optional sections too."""
    found = []
    for name, field in section.model_fields.items():
        types = (field.annotation, *get_args(field.annotation))
        inner = next((t for t in types if isinstance(t, type) and issubclass(t, Section)), None)
        found += [f"{prefix}{name}", *(keys(inner, f"{prefix}{name}.") if inner else [])]
    return found


def test_every_setting_says_what_it_changes() -> None:
    every = keys(Profile)
    data = load_profile("embedded").model_dump()
    for mode in ("thinking", "non_thinking"):
        data["evaluation"]["server"][mode] = "a mapping of its own"
    assert set(flat(data)) <= set(every) and len(every) > 100
    for key in every:
        assert affected_by(key) <= {"mix", "training", "evaluation", "preference", "grpo"}
    with pytest.raises(KeyError):
        affected_by("training.learning_rat")
    assert affects("no.such.setting", "mix")  # of another version: it may change anything


@pytest.mark.parametrize(
    ("key", "results"),
    [
        ("data.turns", {"mix"}),
        ("data.workers", set()),
        ("evaluation.workers", set()),
        ("evaluation.batch_size", set()),
        ("evaluation.limit", {"evaluation"}),
        ("data.max_length", {"mix", "preference"}),
        ("model.name", {"mix", "training", "evaluation"}),
        ("model.load_in_4bit", {"training", "evaluation"}),
        ("training.save_total_limit", set()),
        ("grpo.beta", {"grpo"}),
        ("grpo.save_total_limit", set()),
        ("evaluation.sampling.thinking.max_new_tokens", {"evaluation", "grpo"}),
        ("evaluation.engine", {"evaluation"}),
        ("evaluation.server.concurrency", set()),
        ("evaluation.server.tuned_model", {"evaluation"}),
        ("evaluation.server.thinking.chat_template_kwargs", {"evaluation"}),
        ("evaluation.dataset_args.gsm8k.local_path", {"evaluation"}),
        ("recipe.sources", {"mix"}),
    ],
)
def test_what_some_settings_change(key: str, results: set[str]) -> None:
    assert affected_by(key) == results


def test_differences_are_named() -> None:
    theirs, mine = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 2, "c": [1]}, "e": None}
    assert differing(theirs, mine) == {"a.b": "a.b is 1 there and 2 here", "d": "d is 1 there and None here"}
    assert shortened(["1", "2", "3", "4"]) == "1; 2; 3; and 1 more" and shortened([]) == "its settings"
    assert masked_keys({"a": {"key": "***", "b": [1, "https://***@host"]}, "c": "x"}) == ["a.key", "a.b"]
