from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.settings import PROFILES, ROOT, MixSettings, load_profile, load_recipe, read_yaml


def recipe_file(tmp_path: Path, **changes: object) -> Path:
    data = yaml.safe_load((ROOT / "data_recipes" / "embedded.yaml").read_text(encoding="utf-8"))
    data.update(changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_loads_with_its_recipe(path: Path) -> None:
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    assert abs(sum(s.share for s in load_recipe(profile.recipe).sources) - 1) < 1e-9


def test_override_sets_one_value_and_leaves_the_rest() -> None:
    plain, changed = load_profile("embedded"), load_profile("embedded", ["training.learning_rate=1e-4"])
    assert changed.training.learning_rate == pytest.approx(1e-4)
    changed.training.learning_rate = plain.training.learning_rate
    assert changed == plain


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", ["training.learning_rat", "'learning_rate'"]),
        ("evaluation.sampling.thinking.temprature=1", ["temprature", "'temperature'"]),
        ("trainin.max_steps=1", ["'trainin'", "'training'"]),
        ("model.max_seq_length=-1", ["model.max_seq_length", "greater than 0", "-1"]),
        ("mix.chat_share=1.5", ["mix.chat_share", "less than or equal to 1"]),
        ("training.learning_rate=fast", ["training.learning_rate", "number", "fast"]),
        ("seed.x=1", ["seed", "single value"]),
        ("training.max_steps", ["key=value"]),
        ("data.workers=[", ["--set data.workers=[ is not valid YAML", "line 1, column 2"]),
        ("lora={rank: 1, rank: 2}", ["--set lora={", "'rank' is given twice"]),
        ("seed=2024-13-45", ["--set seed=2024-13-45", "timestamp"]),
    ],
)
def test_bad_override_names_place_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_profile("embedded", [override])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'embedded'"):
        load_profile("embeded")


def test_shares_that_do_not_add_up(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["sources"][0]["share"] = 0.75
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError, match=r"add up to 1\.25, not 1: 0\.75 \(chat\) \+ 0\.5 \(math\)"):
        load_recipe(str(path))


def test_share_outside_zero_to_one(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["sources"][0]["share"] = -0.25
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError, match=r"sources\.0\.share.*greater than or equal to 0"):
        load_recipe(str(path))


def test_missing_and_broken_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "nothing.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [1, 2", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML.*line"):
        load_recipe(str(broken))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: t\nlicence: 2024-13-45\n", r"line 2, column 10: '2024-13-45' cannot be read as timestamp"),
        ("name: !!bool maybe\n", r"line 1, column 7: 'maybe' cannot be read as bool"),
        ("name: !!timestamp soon\n", "'soon' cannot be read as timestamp"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("name: a\nunit: rows\nname: b\n", "line 3, column 1: the key 'name' is given twice, first in line 1"),
        ("sources:\n  - {name: a, share: 1, share: 0.5}\n", "line 2, column 25: the key 'share' is given twice"),
        ("name: a\x00b\n", "not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read_yaml(tmp_path / "r.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'r.yaml'} is not valid YAML: ")


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    text = "z: &z {k: 1, m: 0}\na: &a {<<: *z, k: 2}\nb: {<<: *a, k: 3}\n1: x\n'1': y\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    data = read_yaml(tmp_path / "r.yaml")
    assert data["b"] == {"k": 3, "m": 0} and data["a"] == {"k": 2, "m": 0} and (data[1], data["1"]) == ("x", "y")


def test_chat_share_divides_among_the_kinds() -> None:
    for share in (0.0, 0.1, 0.6, 1.0):
        recipe = load_recipe("data_recipes/embedded.yaml", MixSettings(chat_share=share))
        assert {s.name: s.share for s in recipe.sources} == pytest.approx({"chat": share, "math": 1 - share})


def test_chat_share_needs_both_sides(tmp_path: Path) -> None:
    path = recipe_file(tmp_path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["sources"] = [data["sources"][1] | {"share": 1.0}]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(UserError, match="needs both a chat source and another"):
        load_recipe(str(path), MixSettings(chat_share=0.5))
