"""The report: what it accepts, what it computes, what it writes."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.evaluation.report.build import build_report, mix_section, write_report
from pipeline.evaluation.report.card import hub_datasets, model_card
from pipeline.evaluation.report.compare import changes, ratio_interval, retention
from pipeline.evaluation.report.page import TEMPLATES, html
from pipeline.evaluation.report.schema import validate_report
from pipeline.evaluation.report.words import headline, table
from pipeline.settings import SamplingTable

HOSTILE = "<script>alert('x')</script>"


def score(right: int, n: int, low: float, high: float) -> dict[str, Any]:
    return {"score": right / n, "n": n, "ci95": [low, high]}


def cell(
    benchmarks: dict[str, Any], *, thinking: bool, fidelity: float = 1.0, truncated: float = 0.0
) -> dict[str, Any]:
    return {
        "benchmarks": benchmarks,
        "n": 300,
        "mode_fidelity": fidelity,
        "mode_fidelity_ci95": [max(fidelity - 0.013, 0.0), min(fidelity + 0.007, 1.0)],
        "opened": 1.0 if thinking else 0.0,
        "closed": 1.0 - truncated if thinking else 0.0,
        "leaked": 0.0,
        "truncated": truncated,
        "mean_reasoning_tokens": 61.4 if thinking else 0.0,
        "mean_answer_tokens": 8.25,
    }


@pytest.fixture
def parts() -> dict[str, Any]:
    """The four sections of a run that went as one hopes. Wilson intervals, 200 and 100 items."""
    return {
        "run": {
            "profile": "embedded",
            "model": "models/embedded",
            "seed": 3407,
            "data_fingerprint": "5f0c" * 16,
            "versions": {"unsloth": "2026.7.1", "torch": "2.13.0+cpu", "trl": "1.4.0"},
            "started": "2026-11-22T03:00:00+00:00",
            "finished": "2026-11-22T03:07:09+00:00",
        },
        "mix": {
            "unit": "rows",
            "sources": [
                {
                    "name": "chat",
                    "mode": "non_thinking",
                    "requested": 0.25,
                    "achieved": {"rows": 0.25, "tokens": 0.112, "loss_tokens": 0.071},
                    "rows": 2000,
                    "rejected": {},
                },
                {
                    "name": "math",
                    "mode": "thinking",
                    "requested": 0.75,
                    "achieved": {"rows": 0.75, "tokens": 0.888, "loss_tokens": 0.929},
                    "rows": 6000,
                    "rejected": {"too_long": 1412, "no_answer": 3},
                },
            ],
        },
        "training": {
            "steps": 500,
            "loss": [{"step": s, "loss": 2.0 / s} for s in range(10, 501, 10)],
            "eval_loss": [{"step": s, "loss": 2.2 / s} for s in range(100, 501, 100)],
            "tokens_per_second": 11043.7,
            "loss_tokens_per_second": 7021.2,
            "peak_memory_bytes": 1_503_238_553,
            "trainable_parameters": 163_840,
            "total_parameters": 2_163_840,
        },
        "evaluation": {
            "base": {
                "thinking": cell(
                    {"skill": score(4, 200, 0.0078, 0.0503), "arithmetic": score(96, 100, 0.9016, 0.9843)},
                    thinking=True,
                ),
                "non_thinking": cell(
                    {"skill": score(0, 200, 0.0, 0.0188), "chat": score(99, 100, 0.9455, 0.9982)}, thinking=False
                ),
            },
            "tuned": {
                "thinking": cell(
                    {"skill": score(182, 200, 0.8622, 0.9423), "arithmetic": score(94, 100, 0.8752, 0.9722)},
                    thinking=True,
                ),
                "non_thinking": cell(
                    {"skill": score(30, 200, 0.1071, 0.2061), "chat": score(99, 100, 0.9455, 0.9982)},
                    thinking=False,
                    fidelity=0.99,
                ),
            },
        },
    }


@pytest.fixture
def report(parts: dict[str, Any]) -> dict[str, Any]:
    return build_report(**parts)


@pytest.fixture
def predictions() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The same two items in all four cells, and one more in the last."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for model in ("base", "tuned"):
        for mode in ("thinking", "non_thinking"):
            think = "<think>\n40 + 2 is 42.\n</think>\n\n" if mode == "thinking" else ""
            right = model == "tuned"
            rows[model, mode] = [
                {
                    "benchmark": "skill",
                    "prompt": "Add 40 and 2.",
                    "reply": f"{think}42",
                    "expected": 42,
                    "correct": right,
                },
                {"benchmark": "chat", "prompt": "Say hello.", "reply": f"{think}Hello!", "correct": True, "id": 7},
            ]
    rows["tuned", "non_thinking"].append({"prompt": "Escape me", "reply": f"{HOSTILE} & <think>a</think>b"})
    return rows


# --- the schema -----------------------------------------------------------------------------------------------


def test_a_whole_report_is_accepted_and_is_plain_json(report: dict[str, Any]) -> None:
    assert report["schema_version"] == 1
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    validate_report(again)


def test_the_report_shares_nothing_with_its_arguments(parts: dict[str, Any]) -> None:
    before = copy.deepcopy(parts)
    report = build_report(**parts)
    report["mix"]["sources"][0]["name"] = "changed"
    assert parts == before


def test_intervals_may_come_as_tuples(parts: dict[str, Any]) -> None:
    parts["evaluation"]["base"]["thinking"]["benchmarks"]["skill"]["ci95"] = (0.0078, 0.0503)
    assert build_report(**parts)["evaluation"]["base"]["thinking"]["benchmarks"]["skill"]["ci95"] == [0.0078, 0.0503]


def test_optional_keys_of_a_cell_may_be_absent(parts: dict[str, Any]) -> None:
    for model in parts["evaluation"].values():
        for one in model.values():
            del one["n"], one["mode_fidelity_ci95"]
    report = build_report(**parts)
    assert headline(report)[-1].startswith("0 of 1,200 replies")
    assert "mode fidelity" in html(report) and "mode fidelity" in table(report)


def _remove(data: Any, path: str) -> None:
    *parents, last = path.split(".")
    for key in parents:
        data = data[int(key) if key.isdigit() else key]
    del data[last]


def _set(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        data = data[int(key) if key.isdigit() else key]
    data[last] = value


@pytest.mark.parametrize(
    "path",
    [
        "schema_version",
        "run.seed",
        "run.data_fingerprint",
        "mix.sources.1.achieved.loss_tokens",
        "training.eval_loss",
        "evaluation",
        "evaluation.tuned.non_thinking",
        "evaluation.base.thinking.leaked",
        "evaluation.base.thinking.benchmarks.skill.n",
        "retention.thinking.mode_fidelity",
    ],
)
def test_a_missing_key_is_named(report: dict[str, Any], path: str) -> None:
    _remove(report, path)
    with pytest.raises(UserError, match=re.escape(f"{path}: field required")):
        validate_report(report)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema_version", 2, "schema_version: input should be 1 (given: 2)"),
        ("evaluation.tuned.thinking.mode_fidelity", 1.2, "mode_fidelity: input should be less than or equal to 1"),
        ("evaluation.tuned.thinking.truncated", -0.1, "truncated: input should be greater than or equal to 0"),
        ("mix.sources.0.requested", 25.0, "mix.sources.0.requested: input should be less than or equal to 1"),
        ("training.tokens_per_second", float("nan"), "training.tokens_per_second: input should be a finite number"),
        ("evaluation.base.thinking.opened", float("nan"), "evaluation.base.thinking.opened"),
        ("training.peak_memory_bytes", float("inf"), "training.peak_memory_bytes"),
        ("run.seed", "3407", "run.seed: input should be a valid integer (given: '3407')"),
        ("run.seed", True, "run.seed: input should be a valid integer (given: True)"),
        ("run.started", "yesterday", "run.started: 'yesterday' is not an ISO 8601 time"),
        ("run.versoins", {}, "unknown key 'run.versoins'. Did you mean 'versions'?"),
        ("mix.unit", "bytes", "mix.unit"),
        ("mix.sources.0.name", "math", "the names must differ"),
        ("mix.sources.0.achieved.tokens", 0.5, "mix.sources[].achieved.tokens: the shares add up to 1.388"),
        ("evaluation.base.thinking.benchmarks.skill.ci95", [0.1], "benchmarks.skill.ci95"),
        ("evaluation.base.thinking.benchmarks.skill.ci95", [0.1, 0.2], "does not contain the value 0.02"),
        ("evaluation.base.thinking.benchmarks.skill.n", 0, "benchmarks.skill.n: input should be greater than 0"),
        ("evaluation.base.thinking.benchmarks", {}, "evaluation.base.thinking.benchmarks"),
        ("retention.thinking.accuracy", {}, "retention.thinking.accuracy should hold arithmetic, skill"),
        ("retention.thinking.mode_fidelity", {"ratio": 1.0, "ci95": None}, "ratio and ci95 are null together"),
        (
            "retention.thinking.mode_fidelity",
            {"ratio": 1.0, "ci95": [1.1, 1.2]},
            "retention.thinking.mode_fidelity.ci95",
        ),
    ],
)
def test_a_wrong_value_is_named(report: dict[str, Any], path: str, value: Any, words: str) -> None:
    _set(report, path, value)
    with pytest.raises(UserError, match=re.escape(words)):
        validate_report(report)


def test_base_and_tuned_have_to_answer_the_same_benchmarks(parts: dict[str, Any]) -> None:
    del parts["evaluation"]["tuned"]["thinking"]["benchmarks"]["arithmetic"]
    with pytest.raises(UserError, match="in mode thinking; only one of them has arithmetic"):
        build_report(**parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(evaluation={}), "evaluation: base: field required; tuned: field required"),
        (lambda p: p["training"].update(tokens_per_second=float("nan")), "training.tokens_per_second"),
        (
            lambda p: p["evaluation"]["base"]["thinking"].update(mode_fidelity=float("nan")),
            "base.thinking.mode_fidelity",
        ),
        (lambda p: p["run"].update(started=Path("x")), "plain JSON data"),
    ],
)
def test_build_says_what_is_missing_or_wrong(
    parts: dict[str, Any], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    change(parts)
    with pytest.raises(UserError, match=re.escape(words)):
        build_report(**parts)


def test_mix_section_takes_what_the_schema_wants_out_of_a_manifest(parts: dict[str, Any]) -> None:
    manifest = copy.deepcopy(parts["mix"]) | {"fingerprint": "ab", "warnings": [], "seed": 1}
    for source in manifest["sources"]:
        source |= {"kind": "chat", "licence": "Apache-2.0", "tokens": 5, "read": 9}
    assert mix_section(manifest) == parts["mix"]


# --- retention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuned", "base", "ratio", "low", "high"),
    [
        # log(1.125) ± 1.959964 · sqrt(1/90 − 1/100 + 1/80 − 1/100) = 0.117783 ± 0.117780
        ((90, 100), (80, 100), 1.125, 1.000003, 1.265619),
        # 30/200 against 60/300: log(0.75) ± 1.959964 · sqrt(1/30 − 1/200 + 1/60 − 1/300) = −0.287682 ± 0.400076
        ((30, 200), (60, 300), 0.75, 0.502702, 1.118954),
        # both 1, halves added: ± 1.959964 · sqrt(2 · (1/200.5 − 1/201))
        ((200, 200), (200, 200), 1.0, 0.990284, 1.009811),
        # tuned 0, halves added: log(0.5/50.5) + 1.959964 · sqrt(1/0.5 − 1/101 + 1/50.5 − 1/101); lower end 0
        ((0, 100), (50, 100), 0.0, 0.0, 0.158291),
    ],
)
def test_ratio_and_interval_by_hand(
    tuned: tuple[int, int], base: tuple[int, int], ratio: float, low: float, high: float
) -> None:
    found = ratio_interval(tuned[0] / tuned[1], tuned[1], base[0] / base[1], base[1])
    assert found["ratio"] == pytest.approx(ratio)
    assert found["ci95"] == pytest.approx([low, high], abs=2e-6)


def test_no_ratio_where_the_base_is_zero() -> None:
    assert ratio_interval(0.5, 100, 0.0, 100) == {"ratio": None, "ci95": None}
    assert ratio_interval(0.0, 100, 0.0, 100) == {"ratio": None, "ci95": None}


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_the_interval_contains_the_ratio(tuned_n: int, base_n: int, data: st.DataObject) -> None:
    tuned, base = data.draw(st.integers(0, tuned_n)), data.draw(st.integers(1, base_n))
    found = ratio_interval(tuned / tuned_n, tuned_n, base / base_n, base_n)
    low, high = found["ci95"]
    assert 0 <= low <= found["ratio"] <= high < float("inf")
    assert low < high


def test_retention_of_a_cell(parts: dict[str, Any]) -> None:
    cells = parts["evaluation"]
    kept = retention(cells["base"]["non_thinking"], cells["tuned"]["non_thinking"])
    assert kept["accuracy"]["skill"] == {"ratio": None, "ci95": None}
    assert kept["accuracy"]["chat"]["ratio"] == 1
    assert kept["mode_fidelity"] == ratio_interval(0.99, 300, 1.0, 300)


def test_retention_of_the_report(report: dict[str, Any]) -> None:
    kept = report["retention"]
    assert set(kept) == {"thinking", "non_thinking"}
    assert kept["thinking"]["accuracy"]["skill"]["ratio"] == pytest.approx(45.5)
    assert kept["thinking"]["accuracy"]["arithmetic"]["ratio"] == pytest.approx(0.94 / 0.96)
    assert kept["non_thinking"]["mode_fidelity"]["ratio"] == pytest.approx(0.99)


def test_the_difference_is_newcombes(report: dict[str, Any]) -> None:
    """56/70 − 48/80, method 10 of Newcombe 1998, table II: 0.0524 to 0.3339."""
    wilson = {"tuned": [0.691842, 0.877000], "base": [0.490498, 0.700395]}
    for model, right, n in (("tuned", 56, 70), ("base", 48, 80)):
        report["evaluation"][model]["thinking"]["benchmarks"] = {"x": score(right, n, *wilson[model])}
    found = next(c for c in changes(report) if c.name == "x")
    assert found.ci95 == pytest.approx([0.0524, 0.3339], abs=1e-3)
    assert found.verdict == "rose"


# --- words ----------------------------------------------------------------------------------------------------


def test_headline_in_plain_words(report: dict[str, Any]) -> None:
    assert headline(report) == [
        "skill rose from 0.02 to 0.91 (thinking, n = 200); skill rose from 0.00 to 0.15 (non-thinking, n = 200).",
        "Nothing fell beyond chance.",
        "Within chance of the base: arithmetic went from 0.96 to 0.94 (thinking, n = 100); "
        "chat stayed at 0.99 (non-thinking, n = 100).",
        "Mode fidelity, base → tuned: thinking 1.00 → 1.00, non-thinking 1.00 → 0.99.",
        "0 of 1,200 replies were cut by the token limit.",
    ]


def test_headline_says_what_fell(parts: dict[str, Any]) -> None:
    parts["evaluation"]["tuned"]["non_thinking"]["benchmarks"]["chat"] = score(41, 100, 0.3187, 0.5080)
    parts["evaluation"]["tuned"]["non_thinking"]["truncated"] = 1 / 300
    report = build_report(**parts)
    assert "chat fell from 0.99 to 0.41 (non-thinking, n = 100)." in headline(report)
    assert headline(report)[-1] == "1 of 1,200 replies was cut by the token limit."
    assert "chat (non-thinking) got worse: 0.990 → 0.410" in model_card(report)


def test_a_rate_below_one_is_never_shown_as_one(parts: dict[str, Any]) -> None:
    parts["evaluation"]["tuned"]["thinking"].update(mode_fidelity=0.998, mode_fidelity_ci95=[0.98, 0.999])
    assert "thinking 1.00 → 0.998" in headline(build_report(**parts))[-2]


def test_table_holds_the_numbers(report: dict[str, Any]) -> None:
    lines = table(report).splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    assert len(lines) == 2 + 4 + 2
    skill = next(line for line in lines if "skill" in line and "non-thinking" not in line)
    for text in ("200", "0.020 [0.008, 0.050]", "0.910 [0.862, 0.942]", "+0.890 [+0.", "thinking"):
        assert text in skill
    assert any("mode fidelity" in line and "0.990" in line and "-0.010" in line for line in lines)


# --- the page -------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects tags, attributes and text, and whether every tag that was opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing(report: dict[str, Any], predictions: dict[tuple[str, str], Any]) -> None:
    text = html(report, predictions)
    page = _Page(text)
    assert not page.open
    assert not {"script", "link", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert value.startswith("#"), f"<{tag} {name}={value!r}>"
        assert not name.startswith("on")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_plots_are_well_formed_and_their_ids_differ(report: dict[str, Any]) -> None:
    text = html(report)
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(drawings) == 3
    ids: list[str] = []
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.tag.endswith("svg") and root.get("viewBox") and root.get("aria-label")
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:url\(#|href="#)([^)"]*)', "".join(drawings))
    assert set(targets) <= set(ids)


def test_hostile_text_stays_text(parts: dict[str, Any], predictions: dict[tuple[str, str], Any]) -> None:
    for value in (HOSTILE, 'a"b', "$x_1$", "_hidden", "模型"):
        parts["run"]["model"] = value
        parts["mix"]["sources"][0]["name"] = value
        for model in parts["evaluation"].values():
            benchmarks = model["non_thinking"]["benchmarks"]
            model["non_thinking"]["benchmarks"] = {value: next(iter(benchmarks.values()))}
        text = html(build_report(**parts), predictions)
        page = _Page(text)
        assert "<script" not in text and "script" not in page.tags
        assert value in page.text
        assert f"{HOSTILE} & <think>a</think>b" in page.text
        for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.S):
            ElementTree.fromstring(drawing)


def test_examples_are_side_by_side(report: dict[str, Any], predictions: dict[tuple[str, str], Any]) -> None:
    text = html(report, predictions)
    assert text.count('<article class="example">') == 3
    assert text.count('<div class="reply">') == 9
    assert '<span class="tag">&lt;think&gt;</span><span class="reasoning">' in text
    assert 'id="examples"' not in html(report)


def test_a_long_reply_keeps_its_end_and_odd_characters_do_no_harm(tmp_path: Path, report: dict[str, Any]) -> None:
    reply = "<think>" + "so " * 5000 + "</think>The end.\x00\ud800"
    write_report(report, tmp_path, {("tuned", "thinking"): [{"prompt": "p", "reply": reply, "truncated": True}]})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The end.\ufffd\ufffd" in text and "characters left out" in text and '<span class="bad">cut</span>' in text
    assert text.count("so ") < 2000


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ({("tuned", "fast"): []}, "no cell 'tuned', 'fast'"),
        ({("tuned", "thinking"): [{"prompt": "p"}]}, "tuned, thinking: 'reply' should be text, found None"),
    ],
)
def test_a_wrong_prediction_is_named(
    tmp_path: Path, report: dict[str, Any], predictions: dict[tuple[str, str], Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        write_report(report, tmp_path, predictions)
    assert not list(tmp_path.iterdir())


def test_a_warning_stands_there_only_when_replies_were_cut(parts: dict[str, Any]) -> None:
    assert "truncation-warning" not in html(build_report(**parts))
    parts["evaluation"]["base"]["non_thinking"]["truncated"] = 0.02
    text = html(build_report(**parts))
    assert 'id="truncation-warning"' in text
    assert "never counted as right" in text
    assert "base, non-thinking: the token limit cut 6 of 300 replies (2.0 %)." in text
    assert "evaluation.sampling.non_thinking.max_new_tokens" in text


def test_nothing_logged_and_nothing_rejected(parts: dict[str, Any]) -> None:
    parts["training"].update(steps=0, loss=[], eval_loss=[])
    parts["mix"]["sources"][1]["rejected"] = {}
    report = build_report(**parts)
    text = html(report)
    assert "No loss was logged." in text and "every row that was read passed" in text
    assert "loss at the end" not in model_card(report)


# --- the card -------------------------------------------------------------------------------------------------


def _front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def test_the_card_has_front_matter_shares_and_scores(report: dict[str, Any]) -> None:
    card = model_card(report, licence="mit")
    front = _front_matter(card)
    assert front["base_model"] == "models/embedded"
    assert front["library_name"] == "peft"
    assert front["license"] == "mit"
    assert "datasets" not in front  # both sources were generated: no hub has them
    assert "unsloth" in front["tags"]
    assert "| math | thinking | 6,000 | 75.0 % | 75.0 % | 88.8 % | 92.9 % |" in card
    assert "Left out of math: 3 no\\_answer, 1,412 too\\_long." in card
    assert table(report) in card
    assert report["run"]["data_fingerprint"] in card
    assert re.findall(r"(?<!\n)\n#+ .*", card) == []  # a blank line before each heading


def test_the_card_names_datasets_as_the_hub_does(tmp_path: Path, report: dict[str, Any]) -> None:
    values = [
        ("chat", "huggingface", "mlabonne/FineTome-100k", 2000),
        ("code", "huggingface", "mlabonne/FineTome-100k", 10),  # another subset of the same
        ("math", "modelscope", "nv-community/OpenMathReasoning", 6000),
        ("own", "local", "private/rows.jsonl", 5),
        ("made", "generated", "finetome_like", 5),
        ("unused", "huggingface", "someone/else", 0),
    ]
    recipe = {"sources": [{"name": name, "source": where, "path": path} for name, where, path, _ in values]}
    rows = [{"name": name, "rows": count} for name, _, _, count in values]
    datasets = hub_datasets({"recipe": recipe, "sources": rows})
    assert datasets == ["mlabonne/FineTome-100k", "nv-community/OpenMathReasoning"]
    card = write_report(report, tmp_path, datasets=datasets)["model_card.md"].read_text(encoding="utf-8")
    assert _front_matter(card)["datasets"] == datasets


def test_the_cards_code_compiles_and_gives_the_sampling(report: dict[str, Any]) -> None:
    greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 64}
    drawn = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 1000}
    sampling = SamplingTable.model_validate({"thinking": drawn, "non_thinking": greedy})
    card = model_card(report, sampling=sampling)
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "card", "exec")
    namespace: dict[str, Any] = {}
    exec(blocks[2].split("\n\n\n")[0], namespace)
    assert namespace["SAMPLING"][True]["temperature"] == 0.6
    assert namespace["SAMPLING"][False] == {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 64}
    assert "max_seq_length=1512" in blocks[0]


def test_sampling_comes_from_the_runs_profile(parts: dict[str, Any]) -> None:
    assert '"temperature": 0.6' in model_card(build_report(**parts))
    parts["run"]["profile"] = "my own"
    card = model_card(build_report(**parts))
    assert "SAMPLING" not in card and "evaluation.sampling" in card


def test_the_card_shows_no_path_of_a_machine(parts: dict[str, Any]) -> None:
    for model in (
        "/somewhere/private/qwen3-tiny",
        "~/private/qwen3-tiny",
        "D:\\private\\qwen3-tiny",
        "../private/qwen3-tiny/",
    ):
        parts["run"]["model"] = model
        report = build_report(**parts)
        card = model_card(report)
        assert _front_matter(card)["base_model"] == "qwen3-tiny"
        assert "private" not in card + html(report)


def test_hostile_text_does_not_break_the_card(parts: dict[str, Any]) -> None:
    name = f"a|b: `{HOSTILE}`\n---\n"
    parts["run"]["model"] = name
    parts["mix"]["sources"][0]["name"] = name
    card = model_card(build_report(**parts))
    assert _front_matter(card)["base_model"] == name
    body = card.split("\n---\n", 1)[1] if "\n---\n" in card else card
    assert "<script" not in body[body.index("# ") :]


# --- writing --------------------------------------------------------------------------------------------------


def test_writing_twice_gives_the_same_bytes(
    tmp_path: Path, parts: dict[str, Any], predictions: dict[tuple[str, str], Any]
) -> None:
    found = []
    for folder in ("a", "b"):
        paths = write_report(build_report(**copy.deepcopy(parts)), tmp_path / folder, predictions)
        assert sorted(paths) == ["model_card.md", "report.html", "report.json"]
        assert all(path == tmp_path / folder / name for name, path in paths.items())
        found.append({name: path.read_bytes() for name, path in paths.items()})
    assert found[0] == found[1]
    validate_report(json.loads(found[0]["report.json"]))


def test_the_users_matplotlib_settings_do_not_matter(report: dict[str, Any]) -> None:
    import matplotlib

    before = html(report)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert html(report) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_a_wrong_report_is_not_written(tmp_path: Path, report: dict[str, Any]) -> None:
    report["training"]["steps"] = -1
    with pytest.raises(UserError, match=re.escape("training.steps")):
        write_report(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_templates_stand_beside_the_package() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} >= {"report.html.j2", "model_card.md.j2"}
