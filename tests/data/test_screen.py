from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.data.chat_format import ChatFormat
from pipeline.data.mix import build_mix, held_out, mix_from_recipe
from pipeline.data.pools import build_pool, build_pools
from pipeline.data.prepare import Preparation
from pipeline.data.screen import screen
from pipeline.settings import AugmentationSettings, Recipe

WORDS = "river stone bread lamp winter train garden music paper cloud horse island mirror salt window tower".split()


@pytest.fixture(scope="module")
def form(embedded_tokenizer: Any) -> ChatFormat:
    return ChatFormat(embedded_tokenizer)


def text(seed: int, words: int = 60) -> str:
    """Random words: two such texts have hardly a word triple in common."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def near(seed: int) -> str:
    """``text(seed)`` with its last word changed."""
    return f"{text(seed).rsplit(' ', 1)[0]} lantern"


def row(question: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": "Noted."} | more


def recipe(folder: Path, sources: dict[str, list[dict[str, Any]]], **changes: Any) -> Recipe:
    """A recipe of local files, equal shares; ``clean`` and the like in ``changes``."""
    entries = []
    for name, rows in sources.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        entries.append(
            {
                "name": name,
                "kind": "chat",
                "source": "local",
                "path": str(folder / f"{name}.jsonl"),
                "share": 1 / len(sources),
            }
        )
    return Recipe.model_validate({"name": "r", "sources": entries} | changes)


def judged(wanted: Recipe, form: ChatFormat) -> list[list[tuple[int, str, str]]]:
    """Line, reason and detail of what falls out, by source."""
    pools = build_pools(wanted, form, 512)
    return [[(r["line"], r["reason"], r["detail"]) for r in s.iter_rejected()] for s in screen(wanted, pools)]


def test_the_first_of_equal_rows_stays_over_all_sources(form: ChatFormat, tmp_path: Path) -> None:
    sources = {
        "one": [row(text(1)), row(text(2)), row(f"  {text(1)}\n")],
        "two": [row(text(3)), row(text(2))],
    }
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True})
    assert judged(wanted, form) == [
        [(3, "duplicate", "the same as one.jsonl:1")],
        [(2, "duplicate", "the same as one.jsonl:2 of source 'one'")],
    ]


def test_near_duplicates_go_and_are_written_out_with_their_content(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(text(n)) for n in range(6)]
    rows.insert(4, row(near(1)))
    wanted = recipe(tmp_path, {"own": rows}, clean={"near_duplicates": {"threshold": 0.8}})
    pools = build_pools(wanted, form, 512)
    (result,) = screen(wanted, pools)
    (rejected,) = result.iter_rejected()
    assert (rejected["line"], rejected["step"], rejected["row"]) == (5, "near_duplicates", rows[4])
    assert rejected["detail"].endswith("similar to own.jsonl:2")
    assert result.keep.tolist() == [True, True, True, True, False, True, True]
    assert result.steps["near_duplicates"]["rejected"] == {"near_duplicate": 1}


def test_a_source_whose_step_is_off_loses_nothing(form: ChatFormat, tmp_path: Path) -> None:
    sources = {"one": [row(text(1))], "two": [row(text(1)), row(text(1))]}
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True})
    wanted.sources[1].clean = wanted.clean.model_copy(update={"exact_duplicates": False})
    assert judged(wanted, form) == [[], []]


@pytest.mark.parametrize("group", [True, False])
def test_alike_rows_lie_on_one_side_of_the_split(form: ChatFormat, tmp_path: Path, group: bool) -> None:
    # Pairs that differ in a word, none removed; by chance about half of them would be parted.
    sources = {"own": [row(t) for n in range(80) for t in (text(n), near(n))]}
    wanted = recipe(tmp_path, sources, group_near_duplicates=group)
    pools = build_pools(wanted, form, 512)
    (result,) = screen(wanted, pools)
    held = held_out(result.key, 0.5)
    parted = int((held[::2] != held[1::2]).sum())
    assert result.keep.all() and 20 < held.sum() < 140
    assert parted == 0 if group else parted > 20


def test_rows_hang_together_over_several_links(form: ChatFormat, tmp_path: Path) -> None:
    # 1 and 2 are alike, 2 and 3 begin with the same exchange: all three are on one side, whatever the side.
    later = [{"role": "user", "content": text(99)}, {"role": "assistant", "content": "Yes."}]

    def talk(question: str, more: list[dict[str, str]]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "No."}, *more]}

    rows = [talk(text(1), []), talk(near(1), []), talk(near(1), later)]
    wanted = recipe(tmp_path, {"own": rows})
    (result,) = screen(wanted, build_pools(wanted, form, 512))
    assert len(set(result.key.tolist())) == 1


def test_augmented_copies_go_with_their_original_and_lie_on_its_side(form: ChatFormat, tmp_path: Path) -> None:
    def question(n: int) -> str:
        return f"Summarise this, which someone sometimes reads: {text(n)}"

    rows = [row(question(n)) for n in range(40)] + [row(question(0))]
    wanted = recipe(tmp_path, {"own": rows}, clean={"exact_duplicates": True})
    wanted.sources[0].augment = [AugmentationSettings(method="synonyms", rate=1.0, copies=2)]
    pools = build_pools(wanted, form, 512)
    (result,) = screen(wanted, pools)
    entries = pools[0].rows
    assert entries["augmented"].sum() > 40
    for number in range(41):
        own = entries["row"] == number
        assert len(set(result.key[own].tolist())) == 1
        assert result.keep[own].tolist() == [number != 40] * int(own.sum())
    mix = build_mix(wanted, pools, seed=1, validation_fraction=0.3)
    (entry,) = mix.manifest["sources"]
    assert entry["rows_augmented"] > 0 and entry["augmented"]["synonyms"] > 40
    assert (entry["read"], entry["kept"]) == (41, 40)


def test_classes_are_balanced(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(text(n), label="much") for n in range(30)] + [row(text(n), label="little") for n in range(30, 40)]
    for ratio, kept in ((1.0, 10), (1.5, 15), (5.0, 30)):
        wanted = recipe(tmp_path, {"own": rows}, clean={"class_balance": {"field": "label", "max_ratio": ratio}})
        (out,) = judged(wanted, form)
        assert Counter(reason for _, reason, _ in out) == ({"surplus_of_class": 30 - kept} if kept < 30 else {})
        assert all(line <= 30 and "'much' has 30 rows" in detail for line, _, detail in out)


def test_the_judgement_is_kept_and_shares_do_not_touch_it(
    form: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"one": [row(text(n)) for n in range(60)], "two": [row(text(n)) for n in range(50, 120)]}
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True})
    arguments: dict[str, Any] = {"max_seq_length": 512, "seed": 1, "cache": tmp_path / "cache"}
    first = mix_from_recipe(wanted, form, **arguments)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr("pipeline.data.screen._judge", never)
    monkeypatch.setattr("pipeline.data.pools._fill", never)
    wanted.sources[0].share, wanted.sources[1].share = 0.7, 0.3
    second = mix_from_recipe(wanted, form, **arguments)
    assert second.rejected == first.rejected and len(first.rejected) == 10
    assert [s["requested"] for s in second.manifest["sources"]] == [0.7, 0.3]
    with pytest.raises(AssertionError, match="done again"):
        mix_from_recipe(wanted.model_copy(update={"group_near_duplicates": False}), form, **arguments)


def test_a_large_group_of_alike_rows_is_said(form: ChatFormat, tmp_path: Path) -> None:
    # The same words but for the last: all hang together, so all go to one side.
    rows = [row(f"{text(1)} {word}") for word in WORDS] * 20 + [row(text(n)) for n in range(2, 42)]
    wanted = recipe(tmp_path, {"own": rows})
    mix = mix_from_recipe(wanted, form, max_seq_length=512, seed=1, validation_fraction=0.1)
    assert any("alike rows stay on one side" in w for w in mix.manifest["warnings"])


def test_pools_without_what_comparing_needs_are_refused(form: ChatFormat, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"own": [row(text(n)) for n in range(3)]})
    plain = [build_pool(Preparation(wanted.sources[0], form, 512))]
    with pytest.raises(UserError, match="compares rows.*build_pools"):
        screen(wanted, plain)
    keys_alone = [build_pool(Preparation(wanted.sources[0], form, 512, comparing=True))]
    with pytest.raises(UserError, match="compares rows.*build_pools"):
        screen(wanted, keys_alone)
    assert screen(wanted.model_copy(update={"group_near_duplicates": False}), plain)[0].keep.all()


def test_answers_to_one_question_are_not_parted(form: ChatFormat, tmp_path: Path) -> None:
    # As in OpenMathReasoning: several solutions to each problem.
    rows = [{"prompt": text(n), "completion": f"{text(1000 + 4 * n + k)}."} for n in range(60) for k in range(4)]
    wanted = recipe(tmp_path, {"own": rows})
    mix = mix_from_recipe(wanted, form, max_seq_length=512, seed=1, validation_fraction=0.2)

    def questions(part: Any) -> set[str]:
        texts = (form.tokenizer.decode(ids) for ids in part["input_ids"])
        return {t.split("<|im_start|>assistant")[0] for t in texts}

    held = questions(mix.validation)
    assert 3 < len(held) < 30 and not held & questions(mix.train)


def test_no_augmented_copy_repeats_another_row(form: ChatFormat, tmp_path: Path) -> None:
    # Copies of the first rows read as the later rows do: "someone" becomes "somebody".
    rows = [row(f"Is {who} number {n} there?") for who in ("someone", "somebody") for n in range(60)]
    clean = {"exact_duplicates": True, "near_duplicates": {"threshold": 0.8}}
    wanted = recipe(tmp_path, {"own": rows}, clean=clean)
    wanted.sources[0].augment = [AugmentationSettings(method="synonyms", rate=1.0)]
    mix = mix_from_recipe(wanted, form, max_seq_length=512, seed=1, validation_fraction=0.2)
    train, validation = ([tuple(ids) for ids in part["input_ids"]] for part in (mix.train, mix.validation))
    assert len(set(train)) == len(train) and validation and not set(train) & set(validation)
    (entry,) = mix.manifest["sources"]
    assert entry["notes"]["augmented_copy_left_out"] > 50
    assert (entry["read"], entry["kept"]) == (120, 120)


def test_no_label_and_surplus_are_both_counted(form: ChatFormat, tmp_path: Path) -> None:
    rows = [row(text(n), label="a" if n % 3 else "b") for n in range(60)] + [row(text(60))]
    wanted = recipe(tmp_path, {"own": rows}, clean={"class_balance": {}})
    mix = mix_from_recipe(wanted, form, max_seq_length=512, seed=1, validation_fraction=0.2)
    (entry,) = mix.manifest["sources"]
    assert entry["rejected"] == {"no_label": 1, "surplus_of_class": 20} and entry["kept"] == 40
    assert len(mix.rejected) == 21


def test_a_source_without_a_share_takes_nothing_from_the_others(form: ChatFormat, tmp_path: Path) -> None:
    sources = {"unused": [row(text(n)) for n in range(50)], "used": [row(text(n)) for n in range(60)]}
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True})
    wanted.sources[0].share, wanted.sources[1].share = 0.0, 1.0
    mix = mix_from_recipe(wanted, form, max_seq_length=512, seed=1, validation_fraction=0.1)
    assert [s["kept"] for s in mix.manifest["sources"]] == [0, 60]


def test_equal_rows_go_also_where_the_first_is_like_an_earlier_one(form: ChatFormat, tmp_path: Path) -> None:
    sources = {"own": [row(text(1)), row(near(1)), row(near(1))]}
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True})  # near-duplicates stay, and only group
    assert judged(wanted, form) == [[(3, "duplicate", "the same as own.jsonl:2")]]


def test_copies_never_take_the_place_of_rows(form: ChatFormat, tmp_path: Path) -> None:
    # "someone" becomes "somebody" in copies of the first row; the second is that copy, word for word, the third is near it.
    base = f"someone asks: {text(1)}"
    rows = [row(base), row(base.replace("someone", "somebody")), row(f"{base.replace('someone', 'somebody')} lantern")]
    for clean in ({"exact_duplicates": True}, {}):
        wanted = recipe(tmp_path, {"own": rows}, clean=clean)
        wanted.sources[0].augment = [AugmentationSettings(method="synonyms", rate=1.0)]
        pools = build_pools(wanted, form, 512)
        (result,) = screen(wanted, pools)
        assert not list(result.iter_rejected())
        augmented = pools[0].rows["augmented"]
        # Of the two copies that equal an original none stays; that the third row is near them costs nothing.
        assert result.keep[~augmented].all() and result.copies_left_out == 2
        assert len(set(result.key.tolist())) == 1


def test_rows_without_a_share_cost_no_copies(form: ChatFormat, tmp_path: Path) -> None:
    sources = {"unused": [row(f"somebody asks {text(n)}") for n in range(20)]}
    sources["used"] = [row(f"someone asks {text(n)}") for n in range(20)]
    wanted = recipe(tmp_path, sources, clean={"exact_duplicates": True, "near_duplicates": {}})
    wanted.sources[0].share, wanted.sources[1].share = 0.0, 1.0
    wanted.sources[1].augment = [AugmentationSettings(method="synonyms", rate=1.0)]
    pools = build_pools(wanted, form, 512)
    assert screen(wanted, pools)[1].copies_left_out == 0 < pools[1].rows["augmented"].sum()


def test_the_question_of_a_copy_is_not_parted_from_its_like(form: ChatFormat, tmp_path: Path) -> None:
    rows = [
        row(f"Is {who} at gate {n} now?", completion=f"{who} {n}") for who in ("someone", "somebody") for n in range(80)
    ]
    wanted = recipe(tmp_path, {"own": rows})
    wanted.sources[0].augment = [AugmentationSettings(method="synonyms", rate=1.0)]
    pools = build_pools(wanted, form, 512)
    (result,) = screen(wanted, pools)
    held = held_out(result.key, 0.5)
    questions = pools[0].rows["question"]
    for question in np.unique(questions):
        assert len(set(held[(questions == question) & result.keep].tolist())) <= 1


def test_equal_rows_are_near_duplicates_too(form: ChatFormat, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"own": [row(text(1)), row(text(1))]}, clean={"near_duplicates": {}})
    assert judged(wanted, form) == [[(2, "near_duplicate", "1.00 similar to own.jsonl:1")]]


def test_no_row_with_a_label_is_no_error(form: ChatFormat, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"own": [row(text(1)), row(text(2))]}, clean={"class_balance": {}})
    pools = build_pools(wanted, form, 512)
    assert [r["reason"] for r in pools[0].rejected] == ["no_label"] * 2 and not list(
        screen(wanted, pools)[0].iter_rejected()
    )


def test_nothing_to_compare_is_no_error(form: ChatFormat, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, {"own": [row("x"), {"prompt": "y"}]})
    pools = build_pools(wanted, form, 3)
    (result,) = screen(wanted, pools)
    assert not result.keep.any() and len(pools[0].rejected) == 2
