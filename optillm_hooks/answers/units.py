"""Units of quantities: their names in several languages, their dimensions and their sizes.

Pure functions. A unit that is not known, such as "apples", is a dimension of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.words import unaccented


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as the product of base units; two units of one dimension differ in size only."""

    dimension: tuple[tuple[str, int], ...] = ()
    """Base units and their powers, sorted."""

    size: Fraction = Fraction(1)
    """Size in base units."""

    def __bool__(self) -> bool:
        return bool(self.dimension)


NO_UNIT: Final = Unit()

_TABLE = """
m 1 m: m meter metre metro mètre metri 米 公尺
m 1/100 : cm centimeter centimetre centimetro centimètre 厘米
m 1/1000 : mm millimeter millimetre millimetro 毫米
m 1000 : km kilometer kilometre kilometro kilomètre chilometro quilometro 公里 千米
m 1/1000000 : um micrometer micron
m 1/1000000000 : nm nanometer
m 254/10000 : inch inche in
m 3048/10000 : foot feet ft
m 9144/10000 : yard yd
m 1609344/1000 : mile mi
g 1 : g gram gramme gramo grammo gramm 克
g 1000 : kg kilogram kilo kilogramme kilogramo kilogramm 公斤 千克
g 1/1000 : mg milligram milligramme
g 1000000 : tonne
g 45359237/100000 : lb
g 28349523125/1000000000 : oz ounce
s 1 : s sec second seconde secondo segundo sekunde sekunden seg 秒
s 1/1000 : ms millisecond
s 60 : min minute minuto minuti minuten 分钟 分
s 3600 : h hr hour heure stunde stunden hora ora ore 小时 時間
s 86400 : day d jour tag tage dia giorno giorni 天 日
s 604800 : week woche wochen semaine semana settimana
month 1 : month monat monate mois mes meses mese mesi
month 12 : year yr jahr jahre an ans annee año anno anni ano 年
l 1 : l liter litre litro 升
l 1/1000 : ml milliliter millilitre
l 1/100 : cl centiliter
l 1/10 : dl deciliter
j 1 : j joule
j 1000 : kj kilojoule
w 1 : w watt
w 1000 : kw kilowatt
w 1000000 : MW megawatt
w 1/1000 : mW milliwatt
n 1 : n newton
n 1000 : kn kilonewton
v 1 : v volt
v 1/1000 : mV millivolt
a 1 : A amp ampere
a 1/1000 : mA milliamp milliampere
ohm 1 : ohm Ω Ω
ohm 1000 : kohm kΩ kilohm
pa 1 : pa pascal
pa 1000 : kpa kilopascal
hz 1 : hz hertz
hz 1000 : khz kilohertz
hz 1000000 : mhz megahertz
hz 1000000000 : ghz gigahertz
mol 1 : mol mole
mol 1/1000 : mmol millimole
degree 1 : degree deg grad grado 度
rad 1 : rad radian
celsius 1 : celsius °c
fahrenheit 1 : fahrenheit °f
kelvin 1 : K kelvin
coulomb 1 : C coulomb
farad 1 : F farad
gram-mole 1 : M molar
% 1 : % percent prozent pourcent
dollar 1 : dollar dolar dollaro usd us$ $ 美元
dollar 1/100 : cent ¢
euro 1 : euro eur € 欧元
gbp 1 : gbp £
pound 1 : pound
yen 1 : yen jpy ¥ 円 日元
yuan 1 : yuan cny rmb 元
rupee 1 : rupee inr ₹ rs
won 1 : won krw ₩
franc 1 : franc chf
apiece 1 : 个 個 つ 本 人
"""


def _table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        head, _, names = line.partition(" :" if " : " in line else ":")
        base, size = head.split()[:2]
        for name in names.split():
            found[name] = Unit(((base, 1),), Fraction(size))
    return found


_UNITS: Final = _table()
_SPELLED: Final = {unaccented(name).lower(): unit for name, unit in _UNITS.items() if len(name) > 1}
_LITRE: Final = Unit((("m", 3),), Fraction(1, 1000))
_KNOWN: Final = _UNITS | {"mph": Unit((("m", 1), ("s", -1)), Fraction(1609344, 3600000))} | {
    name: Unit((("m", 1), ("s", -1)), Fraction(1000, 3600)) for name in ("kmh", "kph")
}  # fmt: skip

CURRENCIES: Final = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "\u20ac": "euro", "eur": "euro",
    "\u00a3": "gbp", "gbp": "gbp", "\u00a5": "yen", "jpy": "yen", "\u20b9": "rupee", "inr": "rupee",
    "rs.": "rupee", "rs": "rupee", "\u20a9": "won", "chf": "franc", "cny": "yuan",
    "c$": "canadian dollar", "cad": "canadian dollar", "a$": "australian dollar",
    "aud": "australian dollar", "hk$": "hong kong dollar", "r$": "real", "brl": "real",
}  # fmt: skip

LETTERS: Final = frozenset("mgshLNJWVKCFAlMdΩΩ")
"""Single-letter units after a space. Any other letter after a number is a variable."""

_VAGUE: Final = {
    _UNITS["pound"]: frozenset({_UNITS["gbp"], _UNITS["lb"]}),
    _UNITS["degree"]: frozenset({_UNITS["celsius"], _UNITS["fahrenheit"]}),
}
"""Units whose names may mean a more exact one."""

_POWER = Pattern(r"\^\{?(-?\d)\}?$")
_WORDS = {"squared": 2, "square": 2, "sq": 2, "cubed": 3, "cubic": 3}
_PHRASES = [
    (Pattern(pattern, re.IGNORECASE), spelling)
    for pattern, spelling in [
        (r"\bper\s+cent\b|\bpor ciento\b|\bpour cent\b|\bper cento\b|\bpor cento\b", "%"),
        (r"\b(?:us|u\.s\.)\s+dollars?\b", "dollar"),
        (r"\b(?:degrees?|deg|°)\s+(?:c|celsius|centigrade)\b", "celsius"),
        (r"\b(?:degrees?|deg|°)\s+(?:f|fahrenheit)\b", "fahrenheit"),
        (r"\b(?:grad|degr[eé]s|grados|gradi|graus)\s+celsius\b", "celsius"),
        (r"\bpounds?\s+sterling\b|\bbritish\s+pounds?\b", "gbp"),
        (r"\bmiles?\s+(?:per|an)\s+hour\b", "mph"),
        (r"\bfluid\s+ounces?\b", "floz"),
    ]
]


def is_known(name: str) -> bool:
    """Return whether `name` is the name of a unit, with or without a power."""
    return _lookup(_POWER.sub("", name)) is not None


def _lookup(name: str) -> Unit | None:
    """Return the unit called `name`. Case matters where it decides: mW is not MW."""
    if name in _KNOWN:
        return _KNOWN[name]
    if len(name) == 2 and name[0] == "M" and name[1] in _KNOWN:
        base = _KNOWN[name[1]]
        return Unit(base.dimension, base.size * 10**6)
    lower = unaccented(name).lower().rstrip(".")
    for spelling in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if spelling in _SPELLED or (len(spelling) == 1 and spelling in _KNOWN):
            return _SPELLED.get(spelling) or _KNOWN[spelling]
    return None


def unit_of(words: Sequence[str]) -> Unit:
    """Return the unit that `words` name, such as "km", "/", "h" or "square", "feet"."""
    text = " ".join(words).replace("\u00b0", " degrees ")
    for pattern, spelling in _PHRASES:
        text = pattern.sub(spelling, text)
    sign, power, size = 1, 1, Fraction(1)
    powers: dict[str, int] = {}
    last: Unit | None = None
    for word in re.sub(r"([/*\u00b7])", r" \1 ", text).split():
        if word in ("/", "per", "pro", "par", "por", "al", "à"):
            sign = -1
        elif word.lower() in _WORDS:
            exponent = _WORDS[word.lower()]
            if word.lower().endswith("ed") and last is not None:
                _multiply(powers, last, sign * (exponent - 1))
                size *= last.size ** (sign * (exponent - 1))
            else:
                power = exponent
        elif word not in ("*", "\u00b7", "of"):
            found = _POWER.search(word)
            power = int(found[1]) if found else power
            last = _named(_POWER.sub("", word))
            _multiply(powers, last, sign * power)
            size *= last.size ** (sign * power)
            power = 1
    return _normal(powers, size)


def _named(name: str) -> Unit:
    known = _lookup(name)
    if known is not None:
        return known
    lower = name.lower()
    singular = lower[:-1] if len(lower) > 2 and lower.endswith("s") else lower
    return Unit(((singular, 1),))


def _multiply(powers: dict[str, int], unit: Unit, power: int) -> None:
    for base, exponent in unit.dimension:
        powers[base] = powers.get(base, 0) + exponent * power


def _normal(powers: dict[str, int], size: Fraction) -> Unit:
    """Return the unit with litres in cubic metres and without what cancels out."""
    litres = powers.pop("l", 0)
    if litres:
        powers["m"] = powers.get("m", 0) + 3 * litres
        size *= _LITRE.size**litres
    return Unit(tuple(sorted((base, power) for base, power in powers.items() if power)), size)


def may_mean(vague: Unit, exact: Unit) -> bool:
    """Return whether `vague` may be a vaguer name of `exact`: none, or pounds for lb."""
    return bool(exact) if not vague else exact in _VAGUE.get(vague, frozenset())
