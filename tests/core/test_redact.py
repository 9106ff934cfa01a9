from __future__ import annotations

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.redact import MASK, masked, masked_text, names_a_secret
from pipeline.settings import load_profile, load_recipe


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "apiKey",
        "HF_TOKEN",
        "password",
        "db-password",
        "client_secret",
        "Authorization",
        "key",
        "WANDB_API_KEY",
    ],
)
def test_keys_that_name_a_secret(key: str) -> None:
    assert names_a_secret(key)
    assert masked({"a": [{key: "hunter2hunter2"}]}) == {"a": [{key: MASK}]}
    assert masked({key: ["one", "two"]}) == {key: [MASK, MASK]} and masked({key: 1234}) == {key: MASK}


@pytest.mark.parametrize(
    "key", ["max_new_tokens", "loss_tokens", "tokenizer", "keyboard", "author", "monkey", "secretary"]
)
def test_keys_that_do_not(key: str) -> None:
    assert not names_a_secret(key)
    assert masked({key: "value"}) == {key: "value"}


def test_the_name_of_a_variable_stays_and_a_key_in_its_place_does_not() -> None:
    assert masked({"api_key_env": "OPENAI_API_KEY"}) == {"api_key_env": "OPENAI_API_KEY"}
    assert masked({"api_key_env": "sk-abc123def"}) == {"api_key_env": MASK}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://bob:pw@host/v1", "https://***@host/v1"),
        ("clone https://tok3n@github.com/a/b.git now", "clone https://***@github.com/a/b.git now"),
        ("http://host/d?x=1&access_token=abc&y=2", "http://host/d?x=1&access_token=***&y=2"),
        ("https://host/a?q=me@here.org", "https://host/a?q=me@here.org"),
        ("mail bob@host.org", "mail bob@host.org"),
        ("models/embedded", "models/embedded"),
    ],
)
def test_urls(text: str, clean: str) -> None:
    assert masked_text(text) == clean and masked_text(clean) == clean


def test_what_the_environment_holds(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path_factory.getbasetemp()))
    text = f"error at planted-0123456789 abc {tmp_path_factory.getbasetemp()}"
    assert masked_text(text) == text  # files that are compared later do not depend on the environment
    assert masked_text(text, environment=True) == text.replace("planted-0123456789", MASK)
    assert masked({"a": ["x planted-0123456789"]}, environment=True) == {"a": [f"x {MASK}"]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=examples(20))
@given(JSON)
def test_masking_twice_changes_nothing_more(data: object) -> None:
    assert masked(masked(data)) == masked(data)


def test_the_shipped_settings_hold_nothing_to_mask() -> None:
    for name in ("embedded", "qwen3-0.6b", "qwen3-8b"):
        profile = load_profile(name)
        assert masked(profile.model_dump()) == profile.model_dump()
        recipe = load_recipe(profile.recipe)
        assert masked(recipe.model_dump()) == recipe.model_dump()
