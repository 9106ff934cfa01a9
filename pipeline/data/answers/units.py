"""Names of units in English, Chinese and LaTeX, and what they are worth: physical ones by pint, currencies by a table here.

Only units of school and everyday life are known. pint alone knows so many, and so many prefixes, that "5 cats" would be
centi-technical-atmospheres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

_KNOWN = frozenset(
    "meter gram second minute hour day week fortnight month year decade century liter newton joule watt volt ampere ohm kelvin "
    "degree_Celsius degree_Fahrenheit degree radian mole hertz pascal bar standard_atmosphere inch foot yard mile "
    "nautical_mile ounce pound ton metric_ton stone gallon quart pint cup tablespoon teaspoon fluid_ounce acre hectare calorie "
    "electron_volt byte bit knot light_year coulomb farad henry tesla weber lumen lux candela molar becquerel horsepower "
    "jin mile_per_hour kilometer_per_hour watt_hour angstrom millimeter_Hg".split()
)
_ABBREVIATED = {
    **{"hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "sec": "second", "secs": "second", "yr": "year"},
    **{"yrs": "year", "wk": "week", "wks": "week", "mo": "month", "lbs": "pound", "lb": "pound", "sqft": "foot**2"},
    **{"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "kmph": "km/hour", "amps": "ampere", "amp": "ampere"},
    **{"Celsius": "degC", "celsius": "degC", "Fahrenheit": "degF", "fahrenheit": "degF", "cc": "cm**3", "mcg": "ug"},
    **{
        "l": "liter",
        "mmHg": "millimeter_Hg",
        "Ω": "ohm",
        "kΩ": "kiloohm",
        "Å": "angstrom",
        "gm": "gram",
        "t": "metric_ton",
    },
    **{"tonne": "metric_ton", "tonnes": "metric_ton", "h": "hour", "deg": "degree", "kgs": "kg", "inches": "inch"},
    **{"atm": "standard_atmosphere", "Cal": "kilocalorie", "kwh": "kWh", "a": "", "d": "day"},
}
_CHINESE = {
    **{"千米": "km", "公里": "km", "厘米": "cm", "分米": "dm", "毫米": "mm", "微米": "um", "纳米": "nm", "米": "m"},
    **{"千克": "kg", "公斤": "kg", "毫克": "mg", "微克": "ug", "克": "g", "吨": "metric_ton", "斤": "jin"},
    **{"个小时": "hour", "小时": "hour", "分钟": "minute", "秒钟": "second", "毫秒": "ms", "秒": "second", "天": "day"},
    **{"个星期": "week", "星期": "week", "周": "week", "个月": "month", "年": "year", "世纪": "century"},
    **{"毫升": "mL", "升": "liter", "公顷": "hectare", "摄氏度": "degC", "华氏度": "degF", "度": "degree"},
    **{
        "牛顿": "newton",
        "牛": "newton",
        "千焦": "kJ",
        "焦耳": "joule",
        "焦": "joule",
        "千瓦时": "kWh",
        "千瓦": "kW",
        "瓦特": "watt",
    },
    **{
        "瓦": "watt",
        "伏特": "volt",
        "伏": "volt",
        "安培": "ampere",
        "欧姆": "ohm",
        "欧": "ohm",
        "千赫": "kHz",
        "赫兹": "Hz",
        "帕": "Pa",
    },
    **{
        "千帕": "kPa",
        "英里": "mile",
        "英尺": "foot",
        "英寸": "inch",
        "磅": "pound",
        "海里": "nautical_mile",
        "摩尔": "mole",
    },
}
_CHINESE_UNIT = re.compile("|".join(sorted(_CHINESE, key=len, reverse=True)))
_CHINESE_AFTER_SLASH = {
    "时": "hour",
    "分": "minute",
    "日": "day",
}  # 千米/时; alone, 5时 is a time and 5分 may be a mark

# Code → names. The amounts of one currency compare, those of two never do.
_MONEY = {
    "USD": "$ dollar dollars usd us$ buck bucks 美元 美金",
    "EUR": "€ euro euros eur 欧元",
    "GBP": "£ gbp 英镑",
    "CNY": "元 块 块钱 元钱 人民币 rmb cny yuan 元人民币",
    "JPY": "yen jpy 日元",
    "INR": "₹ rupee rupees inr rs 卢比",
    "KRW": "₩ won krw 韩元",
    "HKD": "hk$ hkd 港元 港币",
    "CNY or JPY": "¥",
    "GBP or pound": "pound pounds",
}
_SMALL_MONEY = {
    **dict.fromkeys(("cent", "cents", "¢", "美分", "penny", "pennies"), ("USD", Fraction(1, 100))),
    **dict.fromkeys(("角", "毛", "毛钱", "角钱", "jiao"), ("CNY", Fraction(1, 10))),
    **dict.fromkeys(("pence",), ("GBP", Fraction(1, 100))),
    **dict.fromkeys(("euro cent", "euro cents", "欧分"), ("EUR", Fraction(1, 100))),
}
MONEY: dict[str, tuple[str, Fraction]] = {
    **{name: (code, Fraction(1)) for code, names in _MONEY.items() for name in names.split()},
    **_SMALL_MONEY,
}
SYMBOLS = "$€£¥₹₩"
_ALSO = {"CNY or JPY": {"CNY", "JPY"}, "GBP or pound": {"GBP"}}

# A short name counts as a unit before other words ("5 kg of rice") only if it is no word itself ("5 in total").
_SHORT_BEFORE_WORDS = frozenset("kg km cm mm dm ml mL ft lb lbs hr hrs oz mg m² km² cm²".split())


@dataclass(frozen=True)
class PhysicalUnit:
    """A unit that is known: of a currency (``money`` is its code, ``factor`` its worth in that) or of pint (``name``)."""

    name: str
    money: str = ""
    factor: Fraction = Fraction(1)


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint  # half a second, with its tables a whole one: only where a unit is seen

    registry: Any = pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)
    registry.define("jin = 500 * gram")
    return registry


_SQUARE = re.compile(r"(?i)\b(square|sq\.?|cubic|cu\.?) +([a-z]+)|\b([a-z]+)[ -](squared|cubed)\b", re.ASCII)


def _english(text: str) -> str:
    """Chinese names, words for powers and division as pint reads them."""
    if not text.isascii():
        text = re.sub(r"平方([\u4e00-\u9fff]+)", lambda m: f"{_chinese(m[1])}^2", text)
        text = re.sub(r"立方([\u4e00-\u9fff]+)", lambda m: f"{_chinese(m[1])}^3", text)
        text = re.sub(r"[每/]([时分日])$", lambda m: "/" + _CHINESE_AFTER_SLASH[m[1]], text)
        text = _chinese(text).replace("每", "/")
        text = text.replace("℃", "degC").replace("℉", "degF").replace("μ", "u").replace("µ", "u")
        text = re.sub(r"° ?([CF])\b", r"deg\1", text).replace("°", "degree").replace("·", "*").replace("⋅", "*")
    text = re.sub(r"(?i)\bdegrees? (celsius|fahrenheit|[CF])\b", lambda m: f"deg{m[1][0].upper()}", text)

    def power(match: re.Match[str]) -> str:
        word, name = (match[1], match[2]) if match[1] else (match[4], match[3])
        return f"{name}^{2 if word.lower().startswith('sq') else 3}"

    text = _SQUARE.sub(power, text)
    return re.sub(r"(?i) per | an? (?=hour|day|week|month|year)", "/", text)


def _chinese(text: str) -> str:
    return _CHINESE_UNIT.sub(lambda match: _CHINESE[match[0]], text)


def _by_pint(text: str) -> str | None:
    """The name under which pint knows a product or quotient of known units; ``None`` where one is not known."""
    total = None
    divided = False
    for part in re.split(r"([*/() ])", text.strip()):
        if part in ("/", "*"):
            divided = part == "/"
        elif part.strip(" ()"):
            word, _, power = part.partition("^")
            if not power and (attached := re.fullmatch(r"([A-Za-zΩ]+)([23])", word)):
                word, power = attached[1], attached[2]
            unit = _single(word)
            if unit is None or not re.fullmatch(r"-?[1-4]|", power) or (word == "in" and total is not None):
                return None
            unit = unit ** int(power or 1)
            total = unit ** (-1 if divided else 1) if total is None else total / unit if divided else total * unit
    # pint cannot write powers that are fractions.
    return None if total is None else " * ".join(f"{name}**{int(n)}" for name, n in sorted(total._units.items()))


def _single(word: str) -> Any:
    """pint's unit of one word; ``None`` where it is not one of those known here."""
    import pint

    registry = _registry()
    for spelled in dict.fromkeys((_ABBREVIATED.get(word, word), _ABBREVIATED.get(word.lower(), word.lower()))):
        if re.fullmatch(r"[A-Za-z_*/\d]+", spelled):
            try:
                unit = registry.Unit(spelled)
            except (pint.errors.UndefinedUnitError, pint.errors.DefinitionSyntaxError, ValueError, TypeError):
                continue
            names = list(unit._units)
            if names and all(map(_is_known, names)):
                return unit
    return None


def _is_known(name: str) -> bool:
    return any(root in _KNOWN for _, root, _ in _registry().parse_unit_name(name))


@lru_cache(maxsize=4096)
def unit_of(text: str) -> PhysicalUnit | None:
    """The unit that a text names, whole ("km/h", "平方米", "dollars") or at its start ("kg of rice", "dollars a day").

    ``None`` where none is known. Capitals count (MW, mW), unless the name is only known without.
    """
    text = " ".join(text.split()).strip(" .,;。，；")
    if not text or len(text) > 60:
        return None
    if (money := MONEY.get(text.lower())) is not None:
        return PhysicalUnit(text.lower(), *money)
    if (name := _by_pint(_english(text))) is not None:
        return PhysicalUnit(name)
    words = text.split(" ")
    for count in range(min(len(words) - 1, 4), 0, -1):
        start = " ".join(words[:count])
        if (money := MONEY.get(start.lower())) is not None:
            return PhysicalUnit(start.lower(), *money)
        if (len(start) > 2 or start in _SHORT_BEFORE_WORDS) and (name := _by_pint(_english(start))) is not None:
            return PhysicalUnit(name)
    if len(words) > 1 and len(words[-1]) > 3 and (name := _by_pint(_english(words[-1]))) is not None:
        return PhysicalUnit(name)  # 7 school days
    return None


def equal_amounts(a: Fraction, unit_a: PhysicalUnit, b: Fraction, unit_b: PhysicalUnit) -> bool:
    """Whether two amounts are the same, exactly: 500 cm is 5 m, 5 g is not 5 kg, 5 dollars are not 5 euros."""
    if unit_a.money or unit_b.money:
        if "GBP or pound" in (unit_a.money, unit_b.money) and not (unit_a.money and unit_b.money):
            return a == b and "pound" in (unit_a.name, unit_b.name)
        codes = [_ALSO.get(unit.money, {unit.money}) for unit in (unit_a, unit_b)]
        return bool(codes[0] & codes[1]) and a * unit_a.factor == b * unit_b.factor
    if unit_a == unit_b:
        return a == b
    registry = _registry()
    one, other = registry.Unit(unit_a.name), registry.Unit(unit_b.name)
    if one.dimensionality != other.dimensionality:
        # "100 degrees" may mean those of a thermometer.
        temperature = {"degree_Celsius", "degree_Fahrenheit"}
        return a == b and "degree" in (unit_a.name, unit_b.name) and bool(temperature & {unit_a.name, unit_b.name})
    return converted(a, unit_a, unit_b) == b


def converted(value: Fraction, unit: PhysicalUnit, into: PhysicalUnit) -> Fraction | None:
    """An amount in another unit of the same kind, exactly; ``None`` where it is of another kind."""
    registry = _registry()
    one, other = registry.Unit(unit.name), registry.Unit(into.name)
    if unit.money or into.money or one.dimensionality != other.dimensionality:
        return None
    import pint

    try:
        return Fraction(registry.Quantity(value, one).to(other).magnitude)
    except pint.errors.OffsetUnitCalculusError:  # a product with degrees of a thermometer
        return None
