"""The words that the embedded corpora are made of, in English and Chinese."""

from __future__ import annotations

from typing import Any

Turn = dict[str, str]
Dialogue = dict[str, Any]

NAMES = (
    "Ada Ben Cleo Dan Ella Finn Gina Hugo Iris Jack Kira Leo Maya Noah Olga Paul Quinn Rosa Sam Tara Uma Vera Will "
    "Xena Yara Zoe Alma Bruno Carla Dora Emil Fay Gus Hana Ivan Jana Karl Lena Marco Nina"
).split()
NAMES_ZH = "李明 王芳 张伟 刘洋 陈静 杨帆 赵磊 黄丽 周杰 吴敏 徐强 孙悦 马超 朱琳 胡军 郭晨 林雪 何涛 高婷 罗兰".split()
PERSONAS = "Nova Orion Echo Pixel Atlas Sage Comet Luna Bolt Maple".split()
PERSONAS_ZH = "小星 小云 小智 小雨 小光 小风".split()
TRADES = "tutor guide coach helper librarian gardener".split()
TRADES_ZH = "老师 向导 教练 助手".split()
# word: (Chinese, kind)
WORDS: dict[str, tuple[str, str]] = {
    "cat": ("猫", "animal"),
    "dog": ("狗", "animal"),
    "horse": ("马", "animal"),
    "bird": ("鸟", "animal"),
    "fish": ("鱼", "animal"),
    "sheep": ("羊", "animal"),
    "tiger": ("虎", "animal"),
    "rabbit": ("兔", "animal"),
    "apple": ("苹果", "food"),
    "rice": ("米饭", "food"),
    "bread": ("面包", "food"),
    "egg": ("鸡蛋", "food"),
    "soup": ("汤", "food"),
    "cake": ("蛋糕", "food"),
    "melon": ("西瓜", "food"),
    "noodle": ("面条", "food"),
    "red": ("红", "colour"),
    "blue": ("蓝", "colour"),
    "green": ("绿", "colour"),
    "white": ("白", "colour"),
    "black": ("黑", "colour"),
    "yellow": ("黄", "colour"),
    "table": ("桌子", "thing"),
    "chair": ("椅子", "thing"),
    "book": ("书", "thing"),
    "clock": ("钟", "thing"),
    "lamp": ("灯", "thing"),
    "door": ("门", "thing"),
}
KINDS_ZH = {"animal": "动物", "food": "食物", "colour": "颜色", "thing": "物品"}
ARTICLE = {"animal": "an animal", "food": "a food", "colour": "a colour", "thing": "a thing"}
OPPOSITES = (
    "hot cold,big small,fast slow,old new,high low,light dark,wet dry,early late,open shut,full empty,"
    "soft hard,rich poor,near far,happy sad,strong weak,long short"
)
OPPOSITES_ZH = "大小,多少,高低,冷热,快慢,长短,新旧,远近,黑白,左右,上下,前后"
DRINKS = {"rainy": "hot tea", "sunny": "lemonade", "snowy": "cocoa", "windy": "coffee", "foggy": "ginger tea"}
DRINKS_ZH = {"下雨": "热茶", "晴": "柠檬水", "下雪": "可可", "刮风": "咖啡"}
CLOSINGS = ("Over.", "Bye!", "Cheers!", "Done.")
LIKED = ("animal", "food", "colour")

OPPOSITE = {a: b for pair in OPPOSITES.split(",") for a, b in (pair.split(), pair.split()[::-1])}
OPPOSITE_ZH = {a: b for pair in OPPOSITES_ZH.split(",") for a, b in (tuple(pair), tuple(pair[::-1]))}
BY_KIND = {kind: [word for word, (_, k) in WORDS.items() if k == kind] for kind in ARTICLE}


def turn_of(user: str, reasoning: str, answer: str) -> list[Turn]:
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer, "reasoning_content": reasoning},
    ]
