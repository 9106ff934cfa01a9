"""Write docs/templates.md: what each chat template that TRL ships says about thinking, and whether it can be used.

    python docs/make_templates.py [--check]

Each template is set on the embedded tokenizer, with the tokens that its own tokenizer has, and probed. The examples are made too.
``--check`` writes nothing and fails where the page is not what would be written.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.core.errors import UserError  # noqa: E402
from pipeline.data.chat_format import ChatFormat  # noqa: E402
from pipeline.data.conversations import Conversation, Rejected  # noqa: E402
from pipeline.model.thinking_style import ThinkingStyle, thinking_style  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = ROOT / "docs" / "templates.md"
# By the beginning of the name: the end token of the models' tokenizers, and what else is a token of theirs.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen": ("<|im_end|>", ()),
    "nemotron": ("<|im_end|>", ()),
    "lfm2": ("<|im_end|>", ()),
    "glm4": ("<|endoftext|>", ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")),
    "gemma4": ("<turn|>", ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool_response>")),
    "diffusion_gemma": ("<turn|>", ("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool_response>")),
    "gptoss": ("<|return|>", ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")),
    "deepseek": ("<｜end▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")),
    "muse": ("<|eot|>", ("<|start|>", "<|message|>", "<|eom|>", "<|eot|>")),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "A number."}}},
        },
    }
]


def shipped() -> dict[str, Path]:
    """TRL's templates of these families as their models ship them, by name; TRL itself is not imported."""
    found = importlib.util.find_spec("trl")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    paths = sorted(folder.glob("*.jinja"))
    return {path.stem: path for path in paths if family(path.stem) and not path.stem.endswith("_training")}


def family(name: str) -> str:
    """The family of a template; "" where it has nothing to do with thinking, such as Llama 3."""
    return next((prefix for prefix in FAMILIES if name.startswith(prefix)), "")


def tokenizer_with(base: PreTrainedTokenizerBase, name: str, template: str | None = None) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer with TRL's template of this name, its end token and its further tokens."""
    eos, tokens = FAMILIES[family(name)]
    tokenizer = copy.deepcopy(base)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.eos_token = eos
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = template or shipped()[name].read_text(encoding="utf-8")
    return tokenizer


def _code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`" if text else "–"


def _switch(style: ThinkingStyle) -> str:
    if not style.switch:
        return f"none: {style.modes[0].replace('_', '-')} only"
    (name, on), (_, off) = (next(iter(kwargs.items())) for kwargs in style.switch.values())
    return f"`{name}` {str(on).lower()} / {str(off).lower()}"


def _history(style: ThinkingStyle) -> str:
    if "thinking" not in style.modes:
        return "–"
    texts = ["kept" if style.keeps_reasoning else "dropped"]
    texts += [f"(`{k}={str(v).lower()}` turns it round)" for k, v in style.history_switch.items()]
    if style.keeps_reasoning_between_calls and not style.keeps_reasoning:
        texts.append("kept between tool calls")
    return ", ".join(texts).replace(", (", " (")


def _efforts(style: ThinkingStyle) -> str:
    words = []
    for effort, kwargs in style.efforts.items():
        (name, _), usual = next(iter(kwargs.items())), " (default)" if effort == style.default_effort else ""
        words.append((effort if name == "reasoning_effort" else f"{effort}: `{name}`") + usual)
    return ", ".join(words) or "–"


def _tools(form: ChatFormat) -> str:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "reasoning_content": "Use it.", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "4"},
        {"role": "assistant", "content": "4", "reasoning_content": "It says 4."},
    ]
    try:
        for mode in form.style.modes:
            form.example(Conversation(messages, mode, tools=TOOLS))
    except Rejected:
        return "no"
    return "yes"


def row(name: str, base: PreTrainedTokenizerBase) -> list[str]:
    """The cells of a template; examples are made in each of its modes."""
    tokenizer = tokenizer_with(base, name)
    try:
        style = thinking_style(tokenizer)
        form = ChatFormat(tokenizer)
        for mode in style.modes:
            answer = {"role": "assistant", "content": "4"} | (
                {"reasoning_content": "2 + 2"} if mode == "thinking" else {}
            )
            form.example(Conversation([{"role": "user", "content": "2 + 2?"}, answer], mode))
    except UserError as error:
        reason = str(error).partition(" What works")[0].replace("|", "\\|")
        return [f"`{name}`", *[""] * 7, f"refused: {reason}"]
    opening = style.opening if "thinking" in style.modes else ""
    thinking = _code(opening) if style.opens_in_prompt else "nothing" if opening else "–"
    direct = (_code(style.direct_block) if style.direct_block else "nothing") if "non_thinking" in style.modes else "–"
    end = " / ".join(_code(end) for end in style.ends()) + (" (opens the next turn)" if style.end_is_next_turn else "")
    verdict = "two modes" if len(style.modes) == 2 else "one mode"
    return [f"`{name}`", _switch(style), thinking, direct, end, _history(style), _efforts(style), _tools(form), verdict]


TEXT = """\
# Chat templates

What a model's chat template says about thinking is found by rendering small conversations with it, never by the model's name
(`pipeline/model/thinking_style.py`). Prompts, masks, the judge of replies, evaluation and rewards all ask there. The parity rule
holds for each: what comes before the loss is what `apply_chat_template(…, add_generation_prompt=True)` gives with the switch of
the mode. Where the thinking prompt ends with the opening tag, the loss starts behind it, and a reply is judged with that tag in
front.

These are the templates that TRL {trl} ships of model families that know reasoning, as their models ship them. {both} can be
switched and used in both modes. `python docs/make_templates.py` writes this page; `tests/model/test_thinking_style.py` proves the
rule for every template, with tools and over several turns.

{table}

- **One mode** (Instruct-2507, Thinking-2507): evaluation and report have one column instead of the 2×2, and rows of a mix that
  are for the other mode are rejected with that reason.
- **Ends a turn**: the second token ends an answer that calls tools. GLM's template ends no turn: the model stops by opening the
  next one, so that token is in the loss, and replies end there.
- **Earlier reasoning** is what a later question still sees of earlier answers; each answer is an example of its own, with the
  history as the template shows it.
- **Effort** and **earlier reasoning** are the template's defaults unless `model.chat_template_kwargs` says otherwise, for example
  `--set "model.chat_template_kwargs={{reasoning_effort: low}}"` or `{{preserve_thinking: true}}`. It is written into the
  tokenizer's template as its default, so rows, evaluation, adapter folder and exports have the same, and an evaluation by a
  server sends it with each request. A name that the template does not read is refused, and so is the keyword that switches the
  mode.
- **Tools**: whether calls, and answers to a tool's result, can be trained. Where not, such rows are rejected with the reason:
  DiffusionGemma's template opens a turn before such an answer that its prompt does not open.
- gpt-oss and LFM2.5 leave it to the model whether it thinks; there is no prompt of the other mode to train or to measure.
- `data.empty_think` other than `masked` needs Qwen3's shape: an empty block behind the thinking prompt.
"""
HEAD = [
    "template",
    "switch",
    "thinking prompt ends",
    "non-thinking prompt ends",
    "ends a turn",
    "earlier reasoning",
    "effort",
]


def page(base: PreTrainedTokenizerBase) -> str:
    """The page as it should be."""
    rows = [row(name, base) for name in shipped()]
    both = sum("true" in cells[1] for cells in rows)
    table = [
        [*HEAD, "tools", "verdict"],
        ["---"] * (len(HEAD) + 2),
        *([cell or "–" for cell in cells] for cells in rows),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return TEXT.format(trl=importlib.metadata.version("trl"), both=both, table="\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    base: Any = AutoTokenizer.from_pretrained(ROOT / "models" / "embedded")
    text = page(base)
    if args.check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
