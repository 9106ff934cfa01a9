"""Step ``refusals``: answers that only refuse."""

from __future__ import annotations

import re
from typing import Any

from pipeline.data.cleaning.languages import HAN
from pipeline.data.cleaning.step import Result, last_message, short
from pipeline.data.conversations import Conversation, Rejected

_UNABLE = (
    r"(?:can['’]?t|cannot|can not|could not|couldn['’]t|am (?:not able|unable)|['’]m (?:not able|unable)|won['’]t|will not|"
    r"am not (?:capable|programmed|allowed|permitted)|"
    r"(?:do not|don['’]t) have (?:the (?:ability|capabilit(?:y|ies)|capacity)|access|permission|personal|real-time))"
)
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:i['’]?m|i am|we['’]re)? ?(?:very |so |really |truly |terribly )?"
        r"(?:sorry|apologi[sz]e|i apologi[sz]e|unfortunately|regret(?:fully)?|afraid)\b"
        # "I cannot determine the angle from two sides" is an answer.
        rf"[^.!?\n]{{0,80}}?\b(?:i|we) ?{_UNABLE}\b(?! (?:determine|calculate|conclude|solve|find|tell|say)\b)",
        r"as an? (?:responsible |helpful |ethical )?"
        r"(?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
        rf"[^.!?\n]{{0,60}}?\bi ?{_UNABLE}\b",
        r"i(?: can['’]?t| cannot| can not| won['’]t| will not| am (?:not able|unable) to|['’]m (?:not able|unable) to) "
        r"(?:assist|help|provide|comply|fulfil|answer|create|generate|engage|discuss|do that)\b",
        r"i (?:must|have to|need to) (?:respectfully |politely |kindly )?(?:decline|refuse)\b",
        r"(?:(?:i['’]?m |i am )?sorry[,.]? |(?:my )?apologies[,.]? |unfortunately,? )?(?:but )?(?:that|this)(?:['’]s| is) "
        r"(?:not something (?:that )?i (?:can|am able to|['’]m able to)|something (?:that )?i (?:can['’]t|cannot|won['’]t)) "
        r"(?:assist|help|provide|do|answer|discuss|support)\b",
        r"[^，。！\n]{0,6}(?:抱歉|对不起|遗憾|不好意思|抱歉的是)"
        r"[^。！\n]{0,24}?(?:无法|不能|没有办法|没办法|没有能力|不具备|不便|不可以|没有权限)",
        r"(?:我是|作为)(?:一[个名位款种])?[^，。！\n]{0,12}(?:ai|人工智能|语言模型|机器人|虚拟助手|智能助手)"
        r"[^。！\n]{0,24}?(?:无法|不能|没有办法|没办法|没有能力|不具备|没有权限)",
        r"我(?:无法|不能)(?:[帮为给][你您忙]|提供|协助|帮助|回答|满足|完成|生成|参与)",
        r"(?:lo siento|lamento|disculpa|perdón)[^.!?\n]{0,40}\bno (?:puedo|me es posible|tengo)\b",
        r"(?:je suis )?(?:vraiment )?désolée?[^.!?\n]{0,40}\bje ne (?:peux|suis|dispose)\b",
        r"(?:es tut mir leid|entschuldigung|leider|tut mir leid)[^.!?\n]{0,40}"
        r"\b(?:kann ich|ich kann|darf ich|ich darf)\b[^.!?\n]{0,60}\bnicht\b",
        r"(?:desculpe|sinto muito|lamento)[^.!?\n]{0,40}\bnão (?:posso|consigo|tenho)\b",
        r"(?:извините|простите|к сожалению|мне жаль)[^.!?\n]{0,40}\bя не (?:могу|имею)\b",
        r"(?:申し訳|すみません|恐れ入り)[^！\n]{0,80}(?:できません|できかねます|いたしかねます|お答えできない)",
        r"죄송[^.!?\n]{0,60}(?:수 없습니다|수가 없습니다|드릴 수 없)",
    )
)
# A letter, a message, lines of a play: there the words are what was asked for, unless they speak of the request.
_ASKED_FOR = re.compile(
    r"(?i)letter|e-?mail|message|apolog|reply|respon[ds]|decline|refus|reject|text (?:to|my)|dialog|story|poem|script|"
    r"role.?play|excuse|translat|rewrite|paraphras|edit|summar|信|邮件|道歉|回复|拒绝|对话|故事|翻译|改写|台词"
)
_OF_THE_REQUEST = re.compile(
    r"(?i)\b(?:an? (?:ai|artificial|language model|virtual)|(?:assist|help)(?:ing)? (?:you )?with (?:that|this)|"
    r"(?:your|this|that) request|comply|fulfil)|人工智能|语言模型|(?:这个|该|您的|你的)(?:请求|要求)"
)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*\S", re.MULTILINE)
# What follows is the thing itself, not an offer ("However, I can …", "不过，我可以……") and not advice to ask elsewhere.
_TURNS_TO_HELP = re.compile(
    r"(?i)\b(?:however|but here|instead|for example|in general|generally|typically),?"
    r"(?! (?:i|if|my|please|feel|you (?:can|may|could|might))\b)[^\n]{60}"
    r"|(?:然而|不过|但是|例如|比如|通常|一般来说|如果是)(?!，?(?:我|如果|您|你|请|提醒))[^\n]{15}"
)
# Characters after the refusing sentence that make it more than a refusal; 150 of Chinese or Japanese.
_HELP_LENGTH = 400


def is_refusal(answer: str, question: str = "") -> bool:
    """Whether an answer only refuses.

    It must open with a refusal; what apologises and then helps (a list, code, or much more text) is none.
    """
    text = answer.lstrip(" \t\n\"'*_>#“")
    opening = next((match for pattern in _REFUSALS if (match := pattern.match(text))), None)
    if opening is None:
        return False
    if _ASKED_FOR.search(question) and not _OF_THE_REQUEST.search(text[: opening.end() + 60]):
        return False
    sentence = re.compile(r"[.!?](?:\s|$)|[。！？\n]").search(text, opening.end())
    rest = text[sentence.end() :].strip() if sentence else ""
    enough = _HELP_LENGTH if len(HAN.findall(text)) * 4 < len(text) else 150
    helps = len(rest) >= enough or len(_LIST_ITEM.findall(rest)) >= 2 or "```" in rest
    return not helps and not _TURNS_TO_HELP.search(rest)


def step_refusals(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    answer = last_message(conversation, "assistant")
    if not answer.get("tool_calls") and is_refusal(answer["content"], last_message(conversation, "user")["content"]):
        raise Rejected("refusal", short(answer["content"], 120))
    return None
