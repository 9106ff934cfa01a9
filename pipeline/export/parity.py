"""Whether a target answers as the run was measured: what it shares with the reference, and what is known to go wrong.

In: the ``Measured`` of base, reference and target. Out: a row a mode for the table, and the target's verdict:

* ``same``: every greedy reply is the reference's, token by token;
* ``close``: replies differ, accuracy and mode fidelity do not by more than ``TOLERANCE``;
* ``differs``: one of them does; said, and left to the reader: 8 and 4 bit change a model;
* ``broken``: a fault below, or accuracy or fidelity fell by more than ``FALL`` and more than chance explains.

The reference is the adapter on its base, not quantised, through PEFT: what is merged, quantised and converted comes from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.modes import CLOSE, MODES, OPEN, Mode
from pipeline.core.statistics import mcnemar
from pipeline.export.measure import Item, Measured
from pipeline.export.records import Compared, ModeNumbers, Numbers, ParityVerdict

TOLERANCE = 0.01  # of accuracy and of fidelity
FALL = 0.05  # of them, beyond which a target is broken if chance does not explain it
CHANCE = 0.01  # two-sided: a fall so large is one in 200 by chance
SHARE = 0.05  # of replies; a form that so many more have than in the reference is no accident
NOTHING = 1e-6  # a difference of log-probabilities that is none
SHOWN = 60  # characters of a prompt in a message


def compare_replies(reference: Measured, target: Measured, base: Measured, exact: bool = False) -> Compared:
    """One target against the reference.

    Args:
        exact: the arithmetic is the same, so every reply has to be.
    """
    rows: dict[str, ModeNumbers] = {mode: _row(reference.items[mode], target.items[mode]) for mode in MODES}
    faults = [
        *prompt_faults(reference, target),
        *reply_faults(reference, target),
        *effect_faults(reference, target, base),
    ]
    same = all(row["same_replies"] == 1 for row in rows.values())
    if exact and not same:
        worst = min(row["same_replies"] for row in rows.values())
        faults.append(f"the arithmetic is the reference's, but only {worst:.1%} of the replies are")
    within = True
    for mode in MODES:
        row, pairs = rows[mode], (reference.items[mode], target.items[mode])
        for what, key, now, change in (
            ("accuracy", "score", row["accuracy"], row["accuracy_change"]),
            ("mode fidelity", "faithful", row["fidelity"], row["fidelity_change"]),
        ):
            within &= abs(change) <= TOLERANCE
            if -change > FALL and _beyond_chance(*pairs, key):
                faults.append(f"{what} fell from {now - change:.3f} to {now:.3f} ({mode})")
    verdict: ParityVerdict = "broken" if faults else "same" if same else "close" if within else "differs"
    return {"modes": rows, "faults": faults, "verdict": verdict}


# --- numbers ------------------------------------------------------------------------------------------------------------


def _row(reference: Sequence[Item], target: Sequence[Item]) -> ModeNumbers:
    n = len(reference)
    pairs = list(zip(reference, target, strict=True))
    differences = [d for pair in pairs for d in _log_prob_differences(*pair)]
    accuracy, fidelity = (sum(getattr(item, key) for item in target) / n for key in ("score", "faithful"))
    before = [sum(getattr(item, key) for item in reference) / n for key in ("score", "faithful")]
    return {
        "prompts": n,
        "same_prompts": sum(r.prompt_ids == t.prompt_ids for r, t in pairs) / n,
        "same_replies": sum(r.answer.reply.token_ids == t.answer.reply.token_ids for r, t in pairs) / n,
        "accuracy": accuracy,
        "accuracy_change": accuracy - before[0],
        "fidelity": fidelity,
        "fidelity_change": fidelity - before[1],
        "log_prob_difference": sum(differences) / len(differences) if differences else None,
    }


def _log_prob_differences(one: Item, other: Item) -> list[float]:
    found = []
    for place, (a, b) in enumerate(zip(one.answer.reply.token_ids, other.answer.reply.token_ids, strict=False)):
        if a != b:
            break
        p, q = one.answer.log_probs[place], other.answer.log_probs[place]
        if p is not None and q is not None:
            found.append(abs(p - q))
    return found


def _beyond_chance(reference: Sequence[Item], target: Sequence[Item], key: str) -> bool:
    """Whether so many more items fell than rose that McNemar's exact test leaves chance less than ``CHANCE``."""
    changes = [getattr(t, key) - getattr(r, key) for r, t in zip(reference, target, strict=True)]
    gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return lost > gained and mcnemar(gained, lost) < CHANCE


# --- faults -------------------------------------------------------------------------------------------------------------


def prompt_faults(reference: Measured, target: Measured) -> list[str]:
    """The prompts that a target builds, where they are not the run's: named by what is known to happen."""
    thinking, direct = (target.items[mode] for mode in MODES)
    switched = [r.prompt != s.prompt for r, s in zip(*(reference.items[mode] for mode in MODES), strict=True)]
    if any(switched) and not any(t.prompt != d.prompt for t, d in zip(thinking, direct, strict=True)):
        return ["the switch is lost: the prompt is the same with and without thinking"]
    faults = []
    for mode in MODES:
        pairs = list(zip(reference.items[mode], target.items[mode], strict=True))
        wrong = [(r, t) for r, t in pairs if r.prompt != t.prompt]
        if wrong:
            faults.append(f"{len(wrong)} of {len(pairs)} prompts are not the run's ({mode}): {_difference(*wrong[0])}")
            continue
        split = [(r, t) for r, t in pairs if r.prompt_ids != t.prompt_ids]
        if split:
            r, t = split[0]
            place = next((i for i, (a, b) in enumerate(zip(r.prompt_ids, t.prompt_ids, strict=False)) if a != b), -1)
            faults.append(
                f"{len(split)} of {len(pairs)} prompts are cut into other tokens ({mode}), the first at token {place} of "
                f"{r.prompt[-SHOWN:]!r}"
            )
    return faults


def _difference(wanted: Item, found: Item) -> str:
    ours, theirs = wanted.prompt, found.prompt
    if theirs.endswith(ours) and theirs != ours:
        return f"another default system prompt or header stands before it, {theirs[: -len(ours)][:SHOWN]!r}"
    for tag in (OPEN, CLOSE):
        more = theirs.count(tag) - ours.count(tag)
        if more:
            return f"{tag} is {'lost' if more < 0 else 'doubled'} in the prompt, which ends {theirs[-SHOWN:]!r}"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"from character {place} on it is {theirs[place : place + SHOWN]!r}, not {ours[place : place + SHOWN]!r}"


def reply_faults(reference: Measured, target: Measured) -> list[str]:
    """Forms that many replies of the target have and few of the reference."""
    faults = []
    if not set(reference.ends) & set(target.ends):
        faults.append(f"the end token is another: {target.ends}, where the run has {reference.ends}")

    def more(mode: Mode, has: Callable[[Item], bool]) -> str | None:
        before, after = (sum(map(has, measured.items[mode])) for measured in (reference, target))
        n = len(target.items[mode])
        return f"{after} of {n} replies, {before} before" if (after - before) / n > SHARE else None

    checks: tuple[tuple[str, tuple[Mode, ...], Callable[[Item], bool]], ...] = (
        ("replies do not end (wrong end token?)", MODES, lambda i: i.answer.reply.truncated),
        ("<think> is lost", ("thinking",), lambda i: OPEN not in _head(i)),
        ("<think> is doubled", ("thinking",), lambda i: i.answer.reply.text.count(OPEN) > 1),
        ("it thinks in non-thinking mode", ("non_thinking",), lambda i: OPEN in i.answer.reply.text),
    )
    for words, modes, has in checks:
        for mode in modes:
            count = more(mode, has)
            if count:
                faults.append(f"{words} ({mode}): {count}")
    return faults


def _head(item: Item) -> str:
    """Where a reply's ``<think>`` has to be: at its start, or already at the end of the prompt."""
    return item.prompt.rstrip()[-len(OPEN) :] + item.answer.reply.text.lstrip()[: len(OPEN)]


def effect_faults(reference: Measured, target: Measured, base: Measured) -> list[str]:
    """An adapter that was loaded, or merged, and changes nothing."""

    def agreement(one: Measured, other: Measured) -> float:
        pairs = [pair for mode in MODES for pair in zip(one.items[mode], other.items[mode], strict=True)]
        return sum(a.answer.reply.token_ids == b.answer.reply.token_ids for a, b in pairs) / len(pairs)

    with_base, with_reference = agreement(target, base), agreement(target, reference)
    if agreement(reference, base) == 1 and _largest_difference(reference, base) < NOTHING:
        return ["the adapter has no effect: base and tuned give every reply the same probability"]
    if with_base > with_reference:
        return [
            f"the adapter has no effect here: {with_base:.1%} of the replies are the base's, {with_reference:.1%} the "
            "tuned model's"
        ]
    return []


def _largest_difference(one: Measured, other: Measured) -> float:
    """The largest |Δ log p| of a token that both wrote behind the same text."""
    pairs = [pair for mode in MODES for pair in zip(one.items[mode], other.items[mode], strict=True)]
    return max((d for pair in pairs for d in _log_prob_differences(*pair)), default=0.0)


# --- in words -----------------------------------------------------------------------------------------------------------


def parity_text(result: Mapping[str, Any]) -> str:
    """The table, a line for each target and mode, and the faults below it."""
    head = ("target", "mode", "prompts", "same replies", "accuracy", "fidelity", "mean |Δ log p|", "verdict")
    lines = [[*head]]
    for name, target in {"base": result["base"], "reference": result["reference"], **result["targets"]}.items():
        for mode, row in target["modes"].items():
            known = row.get("same_replies") is not None
            lines.append(
                [
                    name,
                    mode.replace("_", "-"),
                    str(row["prompts"]),
                    f"{row['same_replies']:.3f}" if known else "",
                    f"{row['accuracy']:.3f}" + (f" ({row['accuracy_change']:+.3f})" if known else ""),
                    f"{row['fidelity']:.3f}" + (f" ({row['fidelity_change']:+.3f})" if known else ""),
                    "" if row.get("log_prob_difference") is None else f"{row['log_prob_difference']:.5f}",
                    target.get("verdict", ""),
                ]
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for name, target in result["targets"].items():
        text += [f"BROKEN {name}: {fault}" for fault in target["faults"]]
    return "\n".join(text)


def plain(measured: Measured) -> Numbers:
    """The numbers of base and reference by themselves."""
    modes: dict[str, ModeNumbers] = {}
    for mode in MODES:
        items = measured.items[mode]
        modes[mode] = {
            "prompts": len(items),
            "accuracy": sum(item.score for item in items) / len(items),
            "fidelity": sum(item.faithful for item in items) / len(items),
        }
    return {"modes": modes}
