"""Write docs/templates.md and its Chinese copy: what each chat template of TRL says about thinking, and if it can be used.

    python docs/make_templates.py [--check]

Each template is set on the embedded tokenizer, with the tokens that its own tokenizer has, and probed. The examples are made too.
``--check`` writes nothing and fails where a page is not what would be written.
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

PAGES = (ROOT / "docs" / "templates.md", ROOT / "docs" / "templates.zh.md")
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


def _switch(style: ThinkingStyle, words: dict[str, str]) -> str:
    if not style.switch:
        return words[f"{style.modes[0]} only"]
    (name, on), (_, off) = (next(iter(kwargs.items())) for kwargs in style.switch.values())
    return f"`{name}` {str(on).lower()} / {str(off).lower()}"


def _history(style: ThinkingStyle, words: dict[str, str]) -> str:
    if "thinking" not in style.modes:
        return "–"
    text = words["kept" if style.keeps_reasoning else "dropped"]
    text += "".join(words["turned"].format(f"{k}={str(v).lower()}") for k, v in style.history_switch.items())
    if style.keeps_reasoning_between_calls and not style.keeps_reasoning:
        text += words["kept between calls"]
    return text


def _efforts(style: ThinkingStyle, words: dict[str, str]) -> str:
    found = []
    for effort, kwargs in style.efforts.items():
        (name, _), usual = next(iter(kwargs.items())), words["default"] if effort == style.default_effort else ""
        found.append((effort if name == "reasoning_effort" else f"{effort}{words['by']}`{name}`") + usual)
    return words["and"].join(found) or "–"


def _tools(form: ChatFormat) -> bool:
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
        return False
    return True


def probed(name: str, base: PreTrainedTokenizerBase) -> tuple[ThinkingStyle, bool] | str:
    """A template's style and whether tools can be trained, with examples made in each mode; or why it is refused."""
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
        return str(error).partition(" What works")[0]
    return style, _tools(form)


def row(name: str, found: tuple[ThinkingStyle, bool] | str, words: dict[str, str]) -> list[str]:
    """The cells of a template, in one language."""
    if isinstance(found, str):
        return [f"`{name}`", *["–"] * 7, words["refused"] + found.replace("|", "\\|")]
    style, tools = found
    opening = style.opening if "thinking" in style.modes else ""
    thinking = _code(opening) if style.opens_in_prompt else words["nothing"] if opening else "–"
    direct = "–"
    if "non_thinking" in style.modes:
        direct = _code(style.direct_block) if style.direct_block else words["nothing"]
    end = " / ".join(_code(end) for end in style.ends()) + (words["next turn"] if style.end_is_next_turn else "")
    history, efforts = _history(style, words), _efforts(style, words)
    verdict = words["two" if len(style.modes) == 2 else "one"]
    trained = words["yes" if tools else "no"]
    return [f"`{name}`", _switch(style, words), thinking, direct, end, history, efforts, trained, verdict]


ENGLISH = """\
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
CHINESE = """\
# 对话模板

一个模型的对话模板怎样表示思考，是用它渲染几段小对话查明的，从不看模型的名字（`pipeline/model/thinking_style.py`）。
提示、损失掩码、对回答形式的判定、评测和奖励都以查到的结果为准。一致性规则对每份模板都成立：计入 loss 之前的内容，
就是带上该模式的开关调用 `apply_chat_template(…, add_generation_prompt=True)` 所得的结果。
如果思考模式的提示以开始标签结尾，loss 从标签之后算起；判定回答时，先把这个标签补在前面。

下表列出 TRL {trl} 附带的模板，取会推理的模型系列，内容与模型发布时的相同。其中 {both} 份可以切换，两种模式都能用，
也就是混合推理。本页由 `python docs/make_templates.py` 写出；`tests/model/test_thinking_style.py` 对每份模板证明上述规则，
包括带工具的和多轮的对话。

两列“提示结尾”写的是：模板在该模式的提示里、assistant 头之后写的内容，“无”是什么也不写。“–”是没有这一项，或者不适用。
“结论”一列里，“拒绝”后面的英文是程序自己的报错，原样列出。它们说的是：模板不能切换思考，而每个提示都以 `<think>` 结尾，
答案从不出现在它后面；模板不能切换思考，却会显示推理，是否思考由模型决定，没有两种模式可言；
模板不显示最后一个回答的推理，思考模式的回答既无法训练，也无法与别的回答区分，较新的模板可能会显示。

{table}

- **一种模式**（Instruct-2507、Thinking-2507）：评测和报告只有一列，而不是 2×2；混合里属于另一种模式的行会被剔除，
  并注明这个原因。
- **一轮的结束符**：第二个 token 结束调用工具的回答。GLM 的模板不写结束符：模型写出下一轮的开头，就此停下，
  所以这个 token 计入 loss，回答也到它为止。
- **先前的推理**：后面的问题还能看到先前回答里的哪些推理。每个回答各是一条样本，其中的历史与模板显示的一样。
- **推理强度**和**先前的推理**采用模板的默认值，除非 `model.chat_template_kwargs` 另有规定，例如
  `--set "model.chat_template_kwargs={{reasoning_effort: low}}"` 或 `{{preserve_thinking: true}}`。
  它作为默认值写进分词器的模板，所以训练样本、评测、适配器目录和导出都相同；由推理服务生成回答的评测，每个请求都带上它。
  模板不读取的名称会被拒绝，切换模式的那个参数也会被拒绝。
- **工具**：工具调用，以及得到工具的结果之后的回答，能否用来训练。不能时，这样的行会被剔除，并注明原因：
  DiffusionGemma 的模板在这样的回答之前另起一轮，它的提示却没有这样做。
- gpt-oss 和 LFM2.5 让模型自己决定是否思考；没有另一种模式的提示可以训练或测量。
- `data.empty_think` 要取 `masked` 以外的值，模板必须是 Qwen3 的形式：思考模式的提示后面跟一个空 think 块。
"""
HEADS = (
    "template | switch | thinking prompt ends | non-thinking prompt ends | ends a turn | earlier reasoning | effort | tools "
    "| verdict",
    "模板 | 开关 | 思考模式的提示结尾 | 非思考模式的提示结尾 | 一轮的结束符 | 先前的推理 | 推理强度 | 工具 | 结论",
)
WORDS: tuple[dict[str, str], ...] = (
    {
        "thinking only": "none: thinking only",
        "non_thinking only": "none: non-thinking only",
        "nothing": "nothing",
        "next turn": " (opens the next turn)",
        "kept": "kept",
        "dropped": "dropped",
        "turned": " (`{}` turns it round)",
        "kept between calls": ", kept between tool calls",
        "default": " (default)",
        "by": ": ",
        "and": ", ",
        "yes": "yes",
        "no": "no",
        "two": "two modes",
        "one": "one mode",
        "refused": "refused: ",
    },
    {
        "thinking only": "没有：只有思考模式",
        "non_thinking only": "没有：只有非思考模式",
        "nothing": "无",
        "next turn": "（下一轮的开头）",
        "kept": "保留",
        "dropped": "去掉",
        "turned": "（设 `{}` 则相反）",
        "kept between calls": "，工具调用之间保留",
        "default": "（默认）",
        "by": "：",
        "and": "、",
        "yes": "能",
        "no": "不能",
        "two": "两种模式",
        "one": "一种模式",
        "refused": "拒绝：",
    },
)


def pages(base: PreTrainedTokenizerBase) -> list[str]:
    """The pages as they should be, in the order of ``PAGES``."""
    found = {name: probed(name, base) for name in shipped()}
    both = sum(not isinstance(one, str) and bool(one[0].switch) for one in found.values())
    made = []
    for text, head, words in zip((ENGLISH, CHINESE), HEADS, WORDS, strict=True):
        heads = head.split(" | ")
        table = [heads, ["---"] * len(heads), *(row(name, one, words) for name, one in found.items())]
        lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        made.append(text.format(trl=importlib.metadata.version("trl"), both=both, table=lines))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    base: Any = AutoTokenizer.from_pretrained(ROOT / "models" / "embedded")
    made = list(zip(PAGES, pages(base), strict=True))
    if args.check:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != text for path, text in made))
    for path, text in made:
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
