"""Things to move in a notebook: a share, a training row with its mask, both modes side by side, and a blind rating.

In: a function that makes something to look at. Out: controls, and below them what the function gives for their values, made anew
at each change. The first picture is an ordinary output: a notebook that is executed in batch, or read where nothing can be moved,
shows it all the same.
"""

from __future__ import annotations

import html
import io
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.statistics import wilson
from pipeline.data.chat_format import coloured
from pipeline.evaluation.report.pictures import COLOURS

LEFT, RIGHT, TIE = "left", "right", "tie"


def follow(make: Callable[..., Any], **controls: Any) -> None:
    """Show the controls and, below, ``make`` of their values; again at each change.

    Args:
        make: takes the values by the controls' names, and returns something that Jupyter can show.
        controls: ipywidgets with a ``value``.
    """
    from IPython.display import display
    from ipywidgets import HBox

    def values() -> dict[str, Any]:
        return {name: control.value for name, control in controls.items()}

    display(HBox(list(controls.values())))
    handle = display(make(**values()), display_id=True)

    def changed(_: Mapping[str, Any]) -> None:
        handle.update(make(**values()))

    for control in controls.values():
        control.observe(changed, names="value")


# --- the share ----------------------------------------------------------------------------------------------------------


def parts_of(share: float, unit: str, sizes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What part is the first of two sources, in each unit, if it is ``share`` in one of them.

    Args:
        sizes: source → its mean size of a row in each unit, such as ``{"rows": 1, "tokens": 40, "loss_tokens": 12}``.

    Raises:
        UserError: a share outside 0 to 1, other than two sources, an unknown unit.
    """
    if not 0 <= share <= 1:
        raise UserError(f"A share lies between 0 and 1, not at {share}.")
    if len(sizes) != 2:
        raise UserError(f"A share is of one of two sources; here are {len(sizes)}.")
    first, second = sizes.values()
    if unit not in first:
        raise UserError(f"There is no unit {unit!r}; there are {', '.join(first)}.")
    rows = share / first[unit], (1 - share) / second[unit]  # so many rows of each make the share
    return {name: rows[0] * first[name] / (rows[0] * first[name] + rows[1] * second[name]) for name in first}


def share_slider(sizes: Mapping[str, Mapping[str, float]], share: float = 0.5) -> None:
    """A slider for the share of the first source and a choice of its unit; bars for the part in each unit."""
    from ipywidgets import Dropdown, FloatSlider

    first, second = sizes
    units = list(next(iter(sizes.values())))

    def picture(share: float, unit: str) -> Any:
        from IPython.display import Image
        from matplotlib.figure import Figure

        parts = parts_of(share, unit, sizes)
        figure = Figure(figsize=(8, 0.5 * len(parts) + 1.1), layout="constrained")
        axes = figure.subplots()
        axes.barh(list(parts), list(parts.values()), color=COLOURS[0], label=first)
        axes.barh(
            list(parts), [1 - v for v in parts.values()], left=list(parts.values()), color=COLOURS[1], label=second
        )
        for place, part in enumerate(parts.values()):
            axes.text(0.5, place, f"{part:.0%} {first}, {1 - part:.0%} {second}", ha="center", va="center")
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="part of the mix", title=f"{first}: {share:.0%} of the {unit}")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=90)
        words = ", ".join(f"{part:.0%} of {name}" for name, part in parts.items())
        return Image(data=file.getvalue(), alt=f"{first} is {words}")

    slider = FloatSlider(value=share, min=0, max=1, step=0.05, description=f"share of {first}", continuous_update=False)
    slider.style.description_width = "initial"
    follow(picture, share=slider, unit=Dropdown(options=units, description="of the"))


# --- the mask -----------------------------------------------------------------------------------------------------------


def mask_viewer(tokenizer: Any, examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Choose a source and a row; its text, with the tokens that carry loss marked, and how many they are.

    Args:
        examples: source → rows with ``input_ids`` and ``labels``.
    """
    from ipywidgets import BoundedIntText, Dropdown

    if not examples or not all(examples.values()):
        raise UserError("There is no row to show.")

    def page(source: str, row: int) -> Any:
        from IPython.display import HTML

        own = examples[source]
        example = dict(own[min(row, len(own) - 1)])
        loss = sum(label != -100 for label in example["labels"])
        head = f"<p>{loss} of {len(example['labels'])} tokens carry loss (marked).</p>"
        return HTML(head + coloured(tokenizer, example, "html"))

    most = max(len(rows) for rows in examples.values()) - 1
    chosen = Dropdown(options=list(examples), description="source")
    follow(page, source=chosen, row=BoundedIntText(value=0, min=0, max=most, description="row"))


# --- both modes ---------------------------------------------------------------------------------------------------------


def two_columns(left: tuple[str, str], right: tuple[str, str]) -> str:
    """HTML: two texts side by side, each with a title. Nothing in them is taken for HTML."""
    cells = "".join(
        f'<td style="vertical-align:top;text-align:left;width:50%"><b>{html.escape(title)}</b>'
        f'<pre style="white-space:pre-wrap">{html.escape(text)}</pre></td>'
        for title, text in (left, right)
    )
    return f'<table style="width:100%;table-layout:fixed"><tr>{cells}</tr></table>'


def side_by_side(ask: Callable[[str, str], str], question: str) -> None:
    """A line for a question; both modes' replies below it, side by side.

    Args:
        ask: gives the reply to a question in a mode, ``thinking`` or ``non_thinking``.
    """
    from ipywidgets import Layout, Text

    def replies(question: str) -> Any:
        from IPython.display import HTML

        modes = (("thinking", "thinking"), ("non_thinking", "non-thinking"))
        left, right = ((title, ask(question, mode)) for mode, title in modes)
        return HTML(two_columns(left, right))

    line = Text(value=question, description="question", continuous_update=False, layout=Layout(width="70%"))
    follow(replies, question=line)


# --- a blind rating -----------------------------------------------------------------------------------------------------


class BlindRating:
    """A person compares two models' replies without knowing whose is whose.

    Each pair is (question, reply of the first model, reply of the second one). The side of each is drawn by lot from the seed, so
    that neither place nor order tells. ``choose`` takes a vote, ``show`` puts buttons for it into the notebook.
    """

    def __init__(self, pairs: Sequence[tuple[str, str, str]], names: tuple[str, str], seed: int = 0) -> None:
        """Keep the pairs, in an order drawn by lot.

        Raises:
            UserError: no pairs, or two names that are the same.
        """
        if not pairs:
            raise UserError("There are no pairs to rate.")
        if names[0] == names[1]:
            raise UserError(f"Both models are called {names[0]!r}; they need two names.")
        draw = random.Random(seed)
        self.names = names
        self.pairs = draw.sample(list(pairs), len(pairs))
        self._first_is_left = [draw.random() < 0.5 for _ in self.pairs]
        self.votes: list[str] = []

    @property
    def shown(self) -> tuple[str, str, str] | None:
        """(question, reply on the left, reply on the right) of the next pair; None at the end."""
        if len(self.votes) == len(self.pairs):
            return None
        question, first, second = self.pairs[len(self.votes)]
        return (question, first, second) if self._first_is_left[len(self.votes)] else (question, second, first)

    def choose(self, side: str) -> None:
        """Vote on the pair that is shown: ``left``, ``right`` or ``tie``.

        Raises:
            UserError: another word, or all pairs are rated.
        """
        if side not in (LEFT, RIGHT, TIE):
            raise UserError(f"A vote is left, right or tie, not {side!r}.")
        if self.shown is None:
            raise UserError("All pairs are rated.")
        self.votes.append(side)

    def result(self) -> dict[str, Any]:
        """Wins of each model, ties, and the win rate of the second one with Wilson's 95 % interval.

        Ties are left out of the rate. ``win_rate`` and ``ci95`` are None where nobody won.
        """
        wins = [0, 0]
        for vote, first_is_left in zip(self.votes, self._first_is_left, strict=False):
            if vote != TIE:
                wins[0 if (vote == LEFT) == first_is_left else 1] += 1
        decided = sum(wins)
        return {
            "wins": dict(zip(self.names, wins, strict=True)),
            "ties": len(self.votes) - decided,
            "rated": len(self.votes),
            "of": len(self.pairs),
            "win_rate": wins[1] / decided if decided else None,
            "ci95": wilson(wins[1], decided) if decided else None,
        }

    def page(self) -> str:
        """HTML: the pair to rate, or the result."""
        if self.shown is not None:
            question, left, right = self.shown
            head = f"<p>{len(self.votes) + 1} of {len(self.pairs)}: <b>{html.escape(question)}</b></p>"
            return head + two_columns((LEFT, left), (RIGHT, right))
        found = self.result()
        if found["win_rate"] is None:
            return f"<p>{found['ties']} ties, and nothing else.</p>"
        low, high = found["ci95"]
        wins = ", ".join(f"{html.escape(name)} {count}" for name, count in found["wins"].items())
        rate = f"{html.escape(self.names[1])} wins {found['win_rate']:.2f} [{low:.2f}, {high:.2f}]"
        return f"<p>{wins}, ties {found['ties']}. Of those decided, {rate}.</p>"

    def show(self) -> None:
        """Buttons, and the pair to rate below them."""
        from IPython.display import HTML, display
        from ipywidgets import Button, HBox

        buttons = {
            side: Button(description=f"{side} is better" if side != TIE else "no difference")
            for side in (LEFT, TIE, RIGHT)
        }
        display(HBox(list(buttons.values())))
        handle = display(HTML(self.page()), display_id=True)

        def clicked(side: str) -> None:
            if self.shown is not None:
                self.choose(side)
                handle.update(HTML(self.page()))

        for side, button in buttons.items():
            button.on_click(lambda _, side=side: clicked(side))
