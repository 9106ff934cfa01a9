"""Token by token: what a framework trains on beside what this project trains on.

In: ids and labels of both. Out: a ``RowAudit``. A loss-bearing token is equal on both sides where it carries loss on both and
everything before it is the same: then, and only then, both trainings learn the same from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.data.chat_format import IGNORE_INDEX
from pipeline.handover.records import Finding, Kind, RowAudit, Span
from pipeline.handover.rows import AuditRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.model.thinking_style import ThinkingStyle

SHOWN = 300  # characters of a finding's text
CUT_SHOWN = 40  # tokens at the end of a row that was cut
BLOCK = 12  # tokens that an empty think block may have
HEAD = 24  # characters by which a message is known again


@dataclass(frozen=True)
class Tokens:
    """One training row: ids, and a label each (−100: no loss)."""

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def loss(self) -> list[bool]:
        return [label != IGNORE_INDEX for label in self.labels]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def equal_loss_tokens(ours: Sequence[Tokens], theirs: Tokens) -> int:
    """Loss-bearing tokens of our examples that the framework's row has as well, behind the same tokens."""
    carrying, count = theirs.loss, 0
    seen: set[int] = set()  # two of our examples with one beginning do not count a token twice
    for example in ours:
        upto = common_prefix(example.input_ids, theirs.input_ids)
        places = {i for i in range(upto) if example.labels[i] != IGNORE_INDEX and carrying[i]}
        count += len(places - seen)
        seen |= places
    return count


class Comparer:
    """Compares rows of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, style: ThinkingStyle, limit: int):
        self.tokenizer, self.style, self.limit = tokenizer, style, limit
        self.block = style.direct_block.strip() or f"{style.tags.open}\n\n{style.tags.close}"

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones too."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def row(self, row: AuditRow, theirs: Tokens | None) -> RowAudit:
        """Both sides of a row; ``theirs`` is None where the framework left it out."""
        if row.too_long:
            return self._too_long(row, theirs)
        ours = [Tokens(e.input_ids, e.labels) for e in row.examples]
        loss = sum(sum(example.loss) for example in ours)
        entry = partial(
            RowAudit, row=row.number, source=row.source, mode=row.mode, turns=row.turns, tools=bool(row.tools)
        )
        if theirs is None:
            left_out = Finding(kind="left_out", text=row.messages[-1]["content"][:SHOWN], tokens=0, loss=False)
            spans = [[Span(text=t, loss=carries, differs=True) for carries, _, t in self._spans(e, [])] for e in ours]
            return entry(
                equal=False,
                loss_tokens=loss,
                framework_loss_tokens=0,
                equal_loss_tokens=0,
                findings=[left_out],
                ours=spans,
                framework=[],
            )
        same, carrying = equal_loss_tokens(ours, theirs), sum(theirs.loss)
        equal = same == loss == carrying
        reference = ours[-1]
        changed_ours, changed_theirs = _changed(reference, theirs)
        shown = [_spans_of(self._spans(e, [])) for e in ours[:-1]]
        return entry(
            equal=equal,
            loss_tokens=loss,
            framework_loss_tokens=carrying,
            equal_loss_tokens=same,
            findings=[] if equal else self.findings(row, reference, theirs),
            ours=[*shown, _spans_of(self._spans(reference, changed_ours))],
            framework=_spans_of(self._spans(theirs, changed_theirs)),
        )

    def _too_long(self, row: AuditRow, theirs: Tokens | None) -> RowAudit:
        """A row that is over the limit: here it is left out, as a thought that is cut teaches not to end one."""
        carrying = 0 if theirs is None else sum(theirs.loss)
        found = [] if theirs is None else [_finding("cut", self.text(theirs.input_ids[-CUT_SHOWN:]), carrying, True)]
        return RowAudit(
            row=row.number,
            source=row.source,
            mode=row.mode,
            turns=row.turns,
            tools=bool(row.tools),
            equal=not carrying,
            loss_tokens=0,
            framework_loss_tokens=carrying,
            equal_loss_tokens=0,
            findings=found if carrying else [],
            ours=[],
            framework=[] if theirs is None else _spans_of(self._spans(theirs, [True] * len(theirs.input_ids))),
        )

    def _spans(self, tokens: Tokens, changed: Sequence[bool]) -> list[tuple[bool, bool, str]]:
        flags = list(zip(tokens.loss, changed or [False] * len(tokens.input_ids), strict=True))
        found = []
        for (loss, differs), group in groupby(range(len(flags)), key=lambda i: flags[i]):
            found.append((loss, differs, self.text([tokens.input_ids[i] for i in group])))
        return found

    # --- what the differences are -----------------------------------------------------------------------------------

    def findings(self, row: AuditRow, ours: Tokens, theirs: Tokens) -> list[Finding]:
        """The differences between the framework's row and our last example of it, each of a known kind where it is one."""
        found: list[Finding] = []
        prompt = next((i for i, carries in enumerate(ours.loss) if carries), len(ours.labels))
        our_loss, their_loss = ours.loss, theirs.loss
        paired: list[tuple[int, int]] = []
        for tag, i1, i2, j1, j2 in _opcodes(ours.input_ids, theirs.input_ids):
            if tag == "equal":
                paired += zip(range(i1, i2), range(j1, j2), strict=True)
                continue
            here, there = self.text(ours.input_ids[i1:i2]), self.text(theirs.input_ids[j1:j2])
            behind, loss = i1 >= len(ours.input_ids), any(their_loss[j1:j2])
            if behind and not loss:
                continue  # nothing is learnt from what stands behind the last token with loss
            kind = self._of_text(row, here, there, behind, i1 < prompt, j2 == len(theirs.input_ids))
            found.append(_finding(kind, there or here, (j2 - j1) or (i2 - i1), loss))
            if loss and kind not in ("newline_after_end", "end_twice", "empty_block_added"):
                found += self._of_loss(row, theirs.input_ids[j1:j2])
        extra = [(i, j) for i, j in paired if their_loss[j] and not our_loss[i]]
        for run in _runs(extra):
            found += self._of_loss(row, [theirs.input_ids[j] for _, j in run])
        for run in _runs([(i, j) for i, j in paired if our_loss[i] and not their_loss[j]]):
            text = self.text([theirs.input_ids[j] for _, j in run])
            found.append(_finding(self._of_silence(row, text), text, len(run), False))
        return _merged(found)

    def _of_text(self, row: AuditRow, here: str, there: str, behind: bool, in_prompt: bool, last: bool) -> Kind:
        """Of a place where the tokens differ: ``here`` ours, ``there`` the framework's."""
        open_, block = self.style.tags.open, self.block
        if behind and not there.strip():
            return "newline_after_end"
        if behind and there.strip() in self.style.ends():
            return "end_twice"
        if last and not there:
            return "cut"
        if not here and there.strip() == block:
            return "empty_block_added"
        if here.strip() == block and not there.strip():
            return "empty_block_missing"
        if in_prompt and _any_head(there, row.earlier_reasoning):
            return "reasoning_in_history"
        if in_prompt and block in there and block not in here:
            return "empty_block_added"
        if in_prompt and open_ in here and open_ not in there:
            return "reasoning_missing"
        if in_prompt and row.tools and not _any_head(there, row.asked):
            return "tools_differ"
        if in_prompt and not row.has_system and "system" in there:
            return "system_added"
        if open_ in here and open_ not in there:
            return "reasoning_missing"
        return "other"

    def _of_loss(self, row: AuditRow, ids: Sequence[int]) -> list[Finding]:
        """Of neighbouring tokens with loss where ours have none."""
        text = self.text(ids)
        found: list[Finding] = []
        block = self._block_tokens(ids) if row.mode == "non_thinking" else 0
        if block:
            found.append(_finding("empty_block_in_loss", self.text(ids[-block:]), block, True))
        if _any_head(text, row.asked):
            found.append(_finding("loss_on_prompt", text, len(ids) - block, True))
        if _any_head(text, row.earlier_answers) or (not found and _any_head(text, row.earlier_reasoning)):
            found.append(_finding("history_in_loss", text, len(ids) - block, True))
        if not found:
            found.append(_finding("other" if text.strip() else "newline_after_end", text, len(ids), True))
        return found

    def _block_tokens(self, ids: Sequence[int]) -> int:
        """How many tokens at the end are the empty think block and the line breaks behind it; 0: there is none."""
        for count in range(1, min(len(ids), BLOCK) + 1):
            if self.text(ids[-count:]).strip() == self.block:
                return count
        return 0

    def _of_silence(self, row: AuditRow, text: str) -> Kind:
        """Of tokens without loss where ours have it."""
        if text.strip() == self.style.tags.open:
            return "no_loss_on_opening"
        if text.strip() in self.style.ends():
            return "end_without_loss"
        if _any_head(text, [row.reasoning]) or self.style.tags.close in text:
            return "no_loss_on_reasoning"
        return "no_loss_on_answer"


def _opcodes(a: Sequence[int], b: Sequence[int]) -> list[tuple[str, int, int, int, int]]:
    """difflib's, with what both begin with taken off first: it is long, and difflib is slow."""
    first = common_prefix(a, b)
    codes = SequenceMatcher(None, a[first:], b[first:], autojunk=False).get_opcodes()
    shifted = [(str(t), i1 + first, i2 + first, j1 + first, j2 + first) for t, i1, i2, j1, j2 in codes]
    return [("equal", 0, first, 0, first), *shifted] if first else shifted


def _changed(ours: Tokens, theirs: Tokens) -> tuple[list[bool], list[bool]]:
    """Of each token of both sides, whether it differs, in itself or in its loss."""
    here, there = [True] * len(ours.input_ids), [True] * len(theirs.input_ids)
    ours_loss, theirs_loss = ours.loss, theirs.loss
    for tag, i1, i2, j1, j2 in _opcodes(ours.input_ids, theirs.input_ids):
        if tag == "equal":
            for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                here[i] = there[j] = ours_loss[i] != theirs_loss[j]
    return here, there


def _runs(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Pairs whose second numbers follow each other, together."""
    return [
        [pair for _, pair in group] for _, group in groupby(enumerate(pairs), key=lambda entry: entry[1][1] - entry[0])
    ]


def _any_head(text: str, messages: Sequence[str]) -> bool:
    """Whether one of the messages begins in the text."""
    return any(head in text for head in (m.strip()[:HEAD].rstrip() for m in messages) if head)


def _finding(kind: Kind, text: str, tokens: int, loss: bool) -> Finding:
    return Finding(kind=kind, text=text[:SHOWN], tokens=tokens, loss=loss)


def _merged(found: Sequence[Finding]) -> list[Finding]:
    """One finding a kind and loss; the text is the first's."""
    kept: dict[tuple[Kind, bool], Finding] = {}
    for finding in found:
        key = (finding.kind, finding.loss)
        if key in kept:
            kept[key] = kept[key].model_copy(update={"tokens": kept[key].tokens + finding.tokens})
        else:
            kept[key] = finding
    return list(kept.values())


def _spans_of(spans: Sequence[tuple[bool, bool, str]]) -> list[Span]:
    return [Span(text=text, loss=loss, differs=differs) for loss, differs, text in spans]
