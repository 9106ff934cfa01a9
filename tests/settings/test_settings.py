from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import UserError
from pipeline.core.place import ROOT
from pipeline.settings import (
    LORA_METHODS,
    METHODS,
    PROFILES,
    Method,
    MixSettings,
    load_profile,
    load_recipe,
    method_section,
    read_yaml,
)


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


# --- methods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_method_decides_the_precision(method: Method) -> None:
    profile = load_profile("embedded", [f"method={method}"])
    assert profile.chosen_method == method
    assert profile.model.load_in_4bit == (method == "qlora")
    assert profile.lora.use_rslora == (method == "rslora")
    assert profile.lora.rank == (32 if method in LORA_METHODS else 16)  # the profile's, where the method has a rank


def test_without_a_method_it_is_lora_at_the_given_precision() -> None:
    assert load_profile("embedded").chosen_method == "qlora" and load_profile("embedded").method is None
    assert load_profile("embedded", ["model.load_in_4bit=false"]).chosen_method == "lora"
    assert load_profile("embedded", ["method=dora", "model.load_in_4bit=true"]).model.load_in_4bit


@pytest.mark.parametrize("method", METHODS)
def test_a_profile_written_out_by_a_run_is_read_again(method: Method, tmp_path: Path) -> None:
    own = method_section(method)
    option = {"lora": ["lora.rank=8"], "prefix": ["prefix.virtual_tokens=7"], "adapter": ["adapter.reduction=4"]}
    profile = load_profile("embedded", [f"method={method}", *option.get(str(own), [])])
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(profile.model_dump()), encoding="utf-8")
    assert load_profile(str(path)) == profile
    other = load_profile(str(path), ["method=ia3", "training.learning_rate=1e-2"])  # and may be made another's
    assert other.chosen_method == "ia3" and not other.model.load_in_4bit


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=full", "model.load_in_4bit=true"], "full trains matrices .* set model.load_in_4bit=false"),
        (["method=lora_attention_full", "model.load_in_4bit=true"], "set model.load_in_4bit=false"),
        (["method=adapter", "model.load_in_4bit=true"], "adapter needs a 16-bit base"),
        (["method=lora", "model.load_in_4bit=true"], "set method=qlora"),
        (["method=qlora", "model.load_in_4bit=false"], "set method=lora"),
        (["method=rslora", "lora.use_rslora=false"], "contradict each other"),
        (["method=prefix", "training.gradient_checkpointing=true"], "set training.gradient_checkpointing=false"),
        (["method=full", "model.name=a/b-bnb-4bit"], "a/b-bnb-4bit is quantised already"),
        (["method=prefix", "lora.rank=8"], "lora holds options of method lora or qlora .* the method is prefix"),
        (["prompt.virtual_tokens=8"], "prompt holds options of method prompt, but the method is lora"),
        (["method=full", "lora.plus_lr_ratio=16"], "lora holds options"),
        (["method=dorra"], "method: input should be"),
        (["method=ia3", "ia3.feedforward_modules=[up_proj]"], "up_proj is not among ia3.target_modules"),
        (["lora.plus_lr_ratio=0.5"], "lora.plus_lr_ratio: input should be greater than or equal to 1"),
        (["training.neftune_noise_alpha=0"], "training.neftune_noise_alpha"),
        (["method=prefix", "prefix.virtual_tokens=0"], "prefix.virtual_tokens"),
    ],
)
def test_settings_that_contradict_a_method(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_profile("embedded", overrides)


def test_a_file_with_options_of_another_method(tmp_path: Path) -> None:
    data = yaml.safe_load((PROFILES / "embedded.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data | {"method": "prompt"}), encoding="utf-8")
    with pytest.raises(UserError, match="lora holds options of method lora"):
        load_profile(str(path))
    del data["lora"], data["model"]["load_in_4bit"]
    path.write_text(yaml.safe_dump(data | {"method": "prompt"}), encoding="utf-8")
    assert not load_profile(str(path)).model.load_in_4bit


# --- shares by name -----------------------------------------------------------------------------------------------------


def test_shares_by_name() -> None:
    recipe = load_recipe("data_recipes/multitask.yaml", MixSettings(shares={"subtraction": 0.25, "reversal": 0.75}))
    assert {s.name: s.share for s in recipe.sources} == {"multiplication": 0, "subtraction": 0.25, "reversal": 0.75}


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        (MixSettings(shares={"subtracton": 1}), "no source 'subtracton'.*'subtraction'"),
        (MixSettings(shares={"subtraction": 0.5}), "add up to 1, given 0.5"),
        (MixSettings(shares={"subtraction": 1.5, "reversal": -0.5}), "at least 0"),
        (MixSettings(shares={}), "given none"),
        (MixSettings(shares={"subtraction": 1}, chat_share=0.5), "give one of them"),
    ],
)
def test_bad_shares_by_name(mix: MixSettings, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("data_recipes/multitask.yaml", mix)
