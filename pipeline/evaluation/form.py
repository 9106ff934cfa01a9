"""The form of a reply: whether it has what its mode asks for.

A reply is judged with the opening tag that its prompt may have ended with (``ThinkingStyle.whole``): from Qwen3.5 on the model
goes on inside the thought. ``Reply.text`` has it.
"""

from __future__ import annotations

from pipeline.core.modes import THINK, Mode, Tags


def split_reply(text: str, tags: Tags = THINK) -> tuple[str, str, bool, bool]:
    """Split a reply at its first closing tag (``</think>``).

    Returns:
        (reasoning, answer, opened, closed). ``opened``: the reply begins with ``<think>``. ``closed``: there is a
        ``</think>``. Where a block was opened and never closed, everything is reasoning and the answer is empty.
    """
    body = text.strip()
    opened = body.startswith(tags.open)
    before, tag, after = body.removeprefix(tags.open).partition(tags.close)
    if tag:
        return before.strip(), after.strip(), opened, True
    return (before.strip(), "", True, False) if opened else ("", body, False, False)


def is_unclosed(text: str, tags: Tags = THINK) -> bool:
    """Whether some ``<think>`` of the reply is never closed; such a reply never counts as right."""
    return text.rfind(tags.open) > text.rfind(tags.close)


def judge(text: str, truncated: bool, mode: Mode, tags: Tags = THINK) -> dict[str, bool]:
    """Whether a reply has the form that its mode asks for.

    Returns:
        ``opened``, ``closed`` as in ``split_reply``; ``leaked``: a think tag where none belongs (anywhere in the
        non-thinking mode, outside the leading block in the thinking mode); ``faithful``:

        * thinking: begins with ``<think>``, has reasoning, closes it, then answers, exactly one block;
        * non-thinking: no think tag, and an answer;
        * and it ended by itself: a truncated reply is never faithful.
    """
    reasoning, answer, opened, closed = split_reply(text, tags)
    count = text.count(tags.open) + text.count(tags.close)
    leaked = count > ((opened + closed) if mode == "thinking" and opened else 0)
    if mode == "thinking":
        form = opened and closed and bool(reasoning) and bool(answer) and not leaked
    else:
        form = count == 0 and bool(answer)
    return {"opened": opened, "closed": closed, "leaked": leaked, "faithful": form and not truncated}
