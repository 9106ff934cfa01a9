"""Does the model obey Qwen3's soft switches? ``/think`` and ``/no_think`` in a message, and the last one wins.

In: a finished run. Out: ``switches.json``: for each case the share of replies in the form that the switch asks for, base and
tuned on the same prompts. With ``enable_thinking=True`` a ``/no_think`` asks for an empty think block and an answer; with
``enable_thinking=False`` the empty block stands in the prompt, and no switch may bring thinking back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core.errors import UserError
from pipeline.core.files import make_folder, write_json, write_jsonl
from pipeline.core.modes import Mode
from pipeline.core.statistics import paired_permutation, wilson
from pipeline.data import corpora
from pipeline.data.chat_format import ChatFormat
from pipeline.data.conversations import Message
from pipeline.model.decode import generate
from pipeline.run import open_run
from pipeline.studies.results import Estimate, SwitchCase, Switches

Form = Literal["thinks", "empty", "direct"]
Item = tuple[str, str, str]  # an earlier question, its answer, the question


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _turns(first: str, last: str) -> Callable[[Item], list[Message]]:
    """Two questions, each with its switch."""

    def messages(item: Item) -> list[Message]:
        earlier, answer, question = item
        reply: Message = {"role": "assistant", "content": answer}
        return [_user(f"{earlier} {first}".strip()), reply, _user(f"{question} {last}".strip())]

    return messages


@dataclass(frozen=True)
class Case:
    """A kind of prompt and the form of reply that it asks for."""

    name: str
    messages: Callable[[Item], list[Message]]
    expected: Form
    mode: Mode = "thinking"


CASES = (
    Case("no switch", lambda i: [_user(i[2])], "thinks"),
    Case("/think", lambda i: [_user(f"{i[2]} /think")], "thinks"),
    Case("/no_think", lambda i: [_user(f"{i[2]} /no_think")], "empty"),
    Case("system /no_think", lambda i: [{"role": "system", "content": "/no_think"}, _user(i[2])], "empty"),
    Case("/no_think, then /think", _turns("/no_think", "/think"), "thinks"),
    Case("/think, then /no_think", _turns("/think", "/no_think"), "empty"),
    Case("/no_think, then nothing", _turns("/no_think", ""), "empty"),
    Case("/think with enable_thinking=False", lambda i: [_user(f"{i[2]} /think")], "direct", "non_thinking"),
)


def form_of(reply: str, truncated: bool) -> Form | None:
    """Which form a reply has; None for one that was cut, has no answer, or has think tags elsewhere."""
    text = reply.strip()
    if truncated:
        return None
    if not text.startswith("<think>"):
        return "direct" if text and "<think>" not in text and "</think>" not in text else None
    head, closed, answer = text.removeprefix("<think>").partition("</think>")
    if not closed or not answer.strip() or "think>" in head + answer:
        return None
    return "thinks" if head.strip() else "empty"


def items(count: int, seed: int) -> list[Item]:
    """Held-out questions of the embedded benchmarks in turn, each with an earlier question and its answer."""
    single: list[tuple[str, str]] = []
    pools = [
        [i for i in corpora.test_items(name, 2 * count, seed) if len(i["messages"]) == 1] for name in corpora.STORY
    ]
    for row in zip(*pools, strict=False):
        single += [(item["messages"][0]["content"], str(item["answer"])) for item in row]
    earlier = [(i["messages"][0]["content"], str(i["answer"])) for i in pools[0]]
    return [(*earlier[n % len(earlier)], question) for n, (question, _) in enumerate(single[:count])]


def run_switches(run_folder: Path, folder: Path, limit: int = 150) -> Switches:
    """Ask base and tuned model all cases.

    Args:
        limit: prompts a case.

    Raises:
        UserError: no run directory, or one without an adapter.
    """

    run = open_run(run_folder)
    make_folder(folder)
    settings = run.profile.evaluation
    asked = items(limit, settings.seed)
    obeyed: dict[str, dict[str, np.ndarray]] = {}
    for which in ("base", "tuned"):
        model, tokenizer = run.model(which)
        form = ChatFormat(tokenizer)
        if not form.style.soft_switch:
            raise UserError(
                "/think and /no_think in a message are Qwen3's; this model's chat template switches in another way."
            )
        rows = []
        for case in CASES:
            prompts = [form.prompt_ids(case.messages(item), case.mode) for item in asked]
            sampling = getattr(settings.sampling, case.mode)
            replies = generate(model, tokenizer, prompts, sampling, settings.batch_size, settings.seed)
            forms = [form_of(reply.text, reply.truncated) for reply in replies]
            obeyed.setdefault(case.name, {})[which] = np.array([f == case.expected for f in forms], float)
            rows += [
                {"case": case.name, "messages": case.messages(item), "reply": reply.text, "form": found}
                for item, reply, found in zip(asked, replies, forms, strict=True)
            ]
        write_jsonl(folder / f"{which}.jsonl", rows)
    entries: list[SwitchCase] = []
    for case in CASES:
        base, tuned = (obeyed[case.name][which] for which in ("base", "tuned"))
        entries.append(
            {
                "case": case.name,
                "expected": case.expected,
                "n": len(asked),
                "base": _share(base),
                "tuned": _share(tuned),
                "p": paired_permutation(base, tuned),
            }
        )
    result: Switches = {"cases": entries}
    write_json(folder / "switches.json", result)
    return result


def _share(hits: np.ndarray) -> Estimate:
    return {"value": float(hits.mean()), "ci95": wilson(hits.sum(), len(hits))}


def switches_text(result: Switches) -> str:
    """``switches.json`` for a terminal."""
    lines = ["| prompt | asks for | n | base | tuned | p |", "| --- | --- | --: | --- | --- | --: |"]
    for e in result["cases"]:
        base, tuned = ("{:.3f} [{:.3f}, {:.3f}]".format(s["value"], *s["ci95"]) for s in (e["base"], e["tuned"]))
        lines.append(f"| {e['case']} | {e['expected']} | {e['n']} | {base} | {tuned} | {e['p']:.4f} |")
    return "\n".join(lines)
