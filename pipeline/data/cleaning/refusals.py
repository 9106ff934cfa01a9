"""Step ``refusals``: answers that only refuse.

It errs on the side of keeping. Kept are answers that deny something ("No, it cannot"), that help after all, that ask for a text
which is missing, words of refusal that the task asked for, refusals of what plainly does harm, and whatever a row with tools
says: that no tool fits is a right answer.
"""

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
        r"(?:sorry|apologi[sz]e|apologies|i apologi[sz]e|unfortunately|regret(?:fully)?|afraid)\b"
        # "I cannot determine the angle from two sides" is an answer.
        rf"[^.!?\n]{{0,80}}?\b(?:i|we) ?{_UNABLE}\b(?! (?:determine|calculate|conclude|find|say)\b"
        r"| solve\b(?! (?:this|the|your) )| tell (?:which|whether|if|from|the|how|what|without)\b)",
        r"(?:(?:i['’]?m |i am )?sorry[,.]? (?:but )?)?(?:as|i am|i['’]m) an? (?:responsible |helpful |ethical |text-based )?"
        r"(?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chatbot)\b"
        rf"[^.!?\n]{{0,60}}?(?:\bi ?|\band (?:so |therefore )?){_UNABLE}\b",
        r"i (?:do not|don['’]t) have access[^.!?\n]{0,60}\bi (?:can['’]t|cannot|can not|am unable to) (?:help"
        r"|assist|provide|answer)\b",
        r"i(?: can['’]?t| cannot| can not| won['’]t| will not| am (?:not able|unable) to|['’]m (?:not able|unable) to) "
        r"(?:assist|help|provide|comply|fulfil|answer|create|generate|engage|discuss|do (?:that|this))\b",
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
# A letter, a message, lines of a play, a sentence to work on: there the words are what was asked for, unless they speak of the
# request.
_ASKED_FOR = re.compile(
    r"(?i)letter|e-?mail|message|note\b|apolog|reply|respon[ds]|decline|refus|reject|text (?:to|my)|dialog|story|poem|script|"
    r"role.?play|excuse|translat|rewrite|paraphras|edit|summar|sentence|indirect speech|past tense|\b(?:join"
    r"|correct|complete|finish|"
    r"continue)\b|\blines?\b|character|信|邮件|道歉|回复|拒绝|婉拒|对话|故事|翻译|改写|台词|造句|续写|角色|连成|改成|写一句|邀请"
)
_OF_THE_REQUEST = re.compile(
    r"(?i)\b(?:an? (?:ai|artificial|language model|virtual)|(?:assist|help)(?:ing)? (?:you )?with (?:that|this)"
    r"|do (?:that|this)\b|"
    r"decline to|(?:your|this|that) request|comply|fulfil)|人工智能|语言模型|(?:这个|该|您的|你的)(?:请求|要求)"
)
# To refuse these is what such a row is for.
_HARMFUL = re.compile(
    r"(?i)\b(?:bombs?|explosives?|weapons?|poison\w*|kill|murder|suicide|self-harm|malware|ransomware"
    r"|virus(?:es)? that|phishing|hack\w*|"
    r"steal\w*|break into|burgl\w*|shoplift\w*|counterfeit\w*|launder\w*|meth\b|cocaine|heroin|fentanyl"
    r"|traffick\w*|abus\w+|rape\w*|porn\w*|"
    r"racis[tm]|slurs?|terroris\w+|stalk\w*|blackmail\w*|forg(?:e|ing|ed) |fraud\w*|scam\w*|torture\w*|illegal\w*"
    r"|bypass\w*|jailbreak\w*)"
    r"|炸弹|炸药|武器|下毒|投毒|毒药|毒品|杀人|杀死|自杀|自残|病毒程序|木马|黑客|入侵|盗取|盗窃|偷|诈骗|骗取|伪造|洗钱|色情|强奸|恐怖|勒索|跟踪他人|违法|非法|歧视"
)
# What the question speaks of is not there: to ask for it is no refusal.
_ASKS_FOR_MATERIAL = re.compile(
    r"(?i)(?:paste|share|attach|upload|provide|send)\w* (?:it|them|me|us|the|a|your|more|additional|further)\b"
    r"|without (?:the|more|additional|further|any)\b"
    r"|(?:can['’]t|cannot|can not|do not|don['’]t) (?:see|find) (?:any|an|the) (?:text|attachment|file|article"
    r"|passage|image|link)"
    r"|(?:没有|未|尚未|并未|没)(?:有)?(?:提供|给出|附上|包含|上传)|请(?:您|你)?(?:先)?(?:把|将|贴|提供|发|上传|附)|(?:如果|若)(?:您|你)?能?(?:够)?(?:提供|给出)"
)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)、])[ \t]*\S", re.MULTILINE)
_SENTENCES = re.compile(r"[^.!?。！？\n]+[.!?。！？\n]*")
# No help but talk about it: an offer, advice to ask elsewhere, what the assistant is for.
_NO_HELP = re.compile(
    r"(?i)\b(?:i(?: can|['’]d| would|['’]m| am| was| will| suggest| recommend| could| hope| understand| only"
    r"| do not| don['’]t| cannot| can['’]t)|"
    r"my (?:current|main|purpose|function|capabilit|knowledge|training)|please|feel free|let me know|if you"
    r"|(?:can|may|could) i |is there|"
    r"are there|consult|you (?:can|may|could|might|should|would)|anything else|as an ai|how (?:else )?can)|"
    r"我(?:可以|能|很|会|的|将|是|愿|只|目前|建议|们可以)|您可以|你可以|请|建议|如果(?:您|你|有|还|需要)|还有|有什么|是否|帮助您|帮您|咨询|作为"
)
_BUT = re.compile(r"(?i)[,;:—–]? ?\b(?:but|however|though|still|instead)\b,?|[，,；]?(?:但是?|不过|可是|然而)，?")
_HELP_LENGTH = 40  # characters of help that make an answer more than a refusal; of Chinese or Japanese 12


def _help(text: str) -> int:
    """Length of what is said in earnest, without offers and advice to ask elsewhere; a CJK character counts for three."""
    kept = [part for part in _SENTENCES.findall(text) if not _NO_HELP.search(part)]
    return sum(len(part.strip()) + 2 * len(HAN.findall(part)) for part in kept)


def is_refusal(answer: str, question: str = "") -> bool:
    """Whether an answer only refuses.

    It must open with a refusal; what apologises and then helps (a list, code, a sentence that is no offer) is none.
    """
    text = answer.lstrip(" \t\n\"'*_>#“")
    opening = next((match for pattern in _REFUSALS if (match := pattern.match(text))), None)
    if opening is None or _HARMFUL.search(question) or _ASKS_FOR_MATERIAL.search(text):
        return False
    if _ASKED_FOR.search(question) and not _OF_THE_REQUEST.search(text[: opening.end() + 60]):
        return False
    rest = text[opening.end() :]
    if "```" in rest or len(_LIST_ITEM.findall(rest)) >= 2:
        return False
    end = re.compile(r"[.!?](?:\s|$)|[。！？\n]").search(rest)
    sentence, rest = (rest[: end.start()], rest[end.end() :]) if end else (rest, "")
    turn = _BUT.search(sentence)
    helping = (_help(sentence[turn.end() :]) if turn else 0) + _help(rest)
    return helping < _HELP_LENGTH


def step_refusals(conversation: Conversation, row: dict[str, Any], setting: bool) -> Result:
    answer = last_message(conversation, "assistant")
    if (
        not conversation.tools
        and not answer.get("tool_calls")
        and is_refusal(answer["content"], last_message(conversation, "user")["content"])
    ):
        raise Rejected("refusal", short(answer["content"], 120))
    return None
