"""The notebooks' widgets: moved as a browser would move them, and shown where nothing can be moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython import display as shown

from pipeline.core.errors import UserError
from pipeline.core.statistics import wilson
from pipeline.course import widgets
from pipeline.course.widgets import BlindRating, follow, parts_of, two_columns

SIZES = {
    "chat": {"rows": 1.0, "tokens": 40.0, "loss_tokens": 10.0},
    "math": {"rows": 1.0, "tokens": 100.0, "loss_tokens": 90.0},
}


class Screen:
    """Stands for the notebook's page: what was displayed, and what the handles were updated with."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.updates: list[Any] = []

    def __call__(self, thing: Any, display_id: bool = False) -> Any:
        self.outputs.append(thing)
        return self if display_id else None

    def update(self, thing: Any) -> None:
        self.updates.append(thing)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    page = Screen()
    monkeypatch.setattr(shown, "display", page)
    return page


def test_half_of_the_rows_is_a_tenth_of_the_loss() -> None:
    assert parts_of(0.5, "rows", SIZES) == pytest.approx({"rows": 0.5, "tokens": 40 / 140, "loss_tokens": 0.1})


@given(st.floats(0, 1), st.sampled_from(["rows", "tokens", "loss_tokens"]))
def test_the_share_is_what_was_asked_for_in_its_own_unit(share: float, unit: str) -> None:
    parts = parts_of(share, unit, SIZES)
    assert parts[unit] == pytest.approx(share)
    assert all(-1e-9 <= part <= 1 + 1e-9 for part in parts.values())
    assert parts["rows"] + 1e-9 >= parts["tokens"] >= parts["loss_tokens"] - 1e-9


@pytest.mark.parametrize(
    ("share", "unit", "sizes", "hint"),
    [
        (1.2, "rows", SIZES, "between 0 and 1"),
        (0.5, "words", SIZES, "no unit 'words'"),
        (0.5, "rows", {}, "two sources"),
    ],
)
def test_wrong_shares_are_refused(share: float, unit: str, sizes: Any, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        parts_of(share, unit, sizes)


def test_a_moved_slider_redraws(screen: Screen) -> None:
    widgets.share_slider(SIZES)
    box, picture = screen.outputs
    slider, unit = box.children
    assert (
        picture.data[:8] == b"\x89PNG\r\n\x1a\n"
        and picture.alt == "chat is 50% of rows, 29% of tokens, 10% of loss_tokens"
    )
    slider.value = 0.9
    unit.value = "loss_tokens"
    assert [update.alt.partition(",")[0] for update in screen.updates] == ["chat is 90% of rows", "chat is 99% of rows"]


def test_the_mask_of_another_row(screen: Screen, tokenizer: Any) -> None:
    def row(text: str, prompt: int) -> dict[str, list[int]]:
        ids = tokenizer(text)["input_ids"]
        return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}

    examples = {"chat": [row("Hello there", 1), row("What is <b>1</b> + 1?", 3)], "math": [row("2 + 2", 1)]}
    widgets.mask_viewer(tokenizer, examples)
    source, number = screen.outputs[0].children
    ids = examples["chat"][0]["input_ids"]
    assert f"{len(ids) - 1} of {len(ids)} tokens" in screen.outputs[1].data
    number.value = 1
    assert "b&gt;1" in screen.updates[-1].data and "<b>1" not in screen.updates[-1].data
    source.value = "math"  # has one row only: its last one is shown
    assert "background" in screen.updates[-1].data
    with pytest.raises(UserError, match="no row"):
        widgets.mask_viewer(tokenizer, {"chat": []})


def test_both_modes_are_asked_again(screen: Screen) -> None:
    asked: list[tuple[str, str]] = []

    def ask(question: str, mode: str) -> str:
        asked.append((question, mode))
        return f"<think> {mode}"

    widgets.side_by_side(ask, "Hello")
    assert (
        asked == [("Hello", "thinking"), ("Hello", "non_thinking")]
        and "&lt;think&gt; thinking" in screen.outputs[1].data
    )
    screen.outputs[0].children[0].value = "What is 1 + 1?"
    assert asked[2:] == [("What is 1 + 1?", "thinking"), ("What is 1 + 1?", "non_thinking")]


def test_nothing_is_taken_for_html() -> None:
    assert "<script>" not in two_columns(("<script>", "<b>"), ("b", "</td>"))


PAIRS = [(f"question {n}", f"base {n}", f"tuned {n}") for n in range(20)]


def test_a_rating_is_blind_and_counts_for_the_right_model() -> None:
    rating = BlindRating(PAIRS, ("base", "tuned"), seed=3)
    sides = []
    while pair := rating.shown:
        left_is_tuned = pair[1].startswith("tuned")
        sides.append(left_is_tuned)
        assert "base" not in rating.page().partition("<table")[0]
        wins = len(sides) % 4  # one of four goes to the base
        rating.choose(("left" if left_is_tuned else "right") if wins else ("right" if left_is_tuned else "left"))
    assert 3 < sum(sides) < 17, "the side is drawn by lot"
    assert [pair[0] for pair in rating.pairs] != [pair[0] for pair in PAIRS]
    found = rating.result()
    assert found["wins"] == {"base": 5, "tuned": 15} and found["win_rate"] == 0.75 and found["ci95"] == wilson(15, 20)
    assert "tuned wins 0.75 [0.53, 0.89]" in rating.page()
    with pytest.raises(UserError, match="All pairs are rated"):
        rating.choose("tie")


def test_ties_stand_beside_the_rate() -> None:
    rating = BlindRating(PAIRS[:2], ("base", "tuned"))
    assert rating.result()["win_rate"] is None
    with pytest.raises(UserError, match="left, right or tie"):
        rating.choose("tuned")
    rating.choose("tie")
    rating.choose("tie")
    assert rating.result()["ties"] == 2 and "2 ties" in rating.page()


@pytest.mark.parametrize(("pairs", "names", "hint"), [([], ("a", "b"), "no pairs"), (PAIRS, ("a", "a"), "two names")])
def test_nothing_to_rate(pairs: Any, names: tuple[str, str], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        BlindRating(pairs, names)


def test_a_click_goes_on_to_the_next_pair_and_ends_with_the_result(screen: Screen) -> None:
    rating = BlindRating(PAIRS[:2], ("base", "tuned"))
    rating.show()
    left, tie, _ = screen.outputs[0].children
    assert "1 of 2" in screen.outputs[1].data
    left.click()
    assert "2 of 2" in screen.updates[0].data
    tie.click()
    tie.click()  # one too many does nothing
    assert len(screen.updates) == 2 and rating.result()["rated"] == 2


@pytest.mark.slow
def test_in_batch_the_first_picture_is_an_ordinary_output(tmp_path: Path) -> None:
    """As papermill runs it: no browser, and the page holds what the slider would show first."""
    from nbclient import NotebookClient

    code = f"from pipeline.course.widgets import share_slider\nshare_slider({SIZES!r})"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}
    ).execute()
    kinds = [set(output["data"]) for output in book.cells[0].outputs]
    assert any("image/png" in kind for kind in kinds)


def test_follow_shows_what_the_function_makes(screen: Screen) -> None:
    from ipywidgets import IntSlider

    number = IntSlider(value=2, min=0, max=9)
    follow(lambda n: n * 10, n=number)
    number.value = 7
    assert screen.outputs[1] == 20 and screen.updates == [70]
