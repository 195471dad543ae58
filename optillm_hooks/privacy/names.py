"""Finds names of people where a text says that they are names.

It is conservative: a name needs a title, a greeting or signature, a field such as `name:`, a
sentence such as "my name is", or an address in angle brackets after it. Names in running text need
another detector. A name that is found once is replaced everywhere.
"""

from collections.abc import Iterator
from typing import Final

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.privacy.found import PERSON, Found

_UPPER: Final = "A-ZÀ-ÖØ-ÞΆ-ΫЀ-ЯĂĄĆČĎĐĘĚĞİŁŃŇŐŒŘŚŞŠŤŮŰŸŹŻŽ"
_WORD: Final = rf"[{_UPPER}](?:[^\W\d_]|['’-](?=[^\W\d_]{{2}})){{1,24}}(?!\w)"
_INITIAL: Final = rf"[{_UPPER}]\.(?=[ \u00a0][{_UPPER}])"
_PARTICLE: Final = "(?:de|da|do|dos|das|di|del|della|der|den|des|du|van|von|zu|la|le|el|al|bin|y|e)"
_NAME: Final = (
    rf"(?:{_WORD}|{_INITIAL})"
    rf"(?:[ \u00a0](?:(?:{_PARTICLE}[ \u00a0]){{0,2}}{_WORD}|{_INITIAL})){{0,3}}"
)
_HAN: Final = "\u3400-\u4dbf\u4e00-\u9fff"
_KATAKANA: Final = "ァ-ヺー"
_HANGUL: Final = "가-힣"


def _any_of(words: str) -> str:
    """Return a pattern of any of the words, which are on lines of their own or between `|`."""
    return "|".join(word for line in words.strip().splitlines() for word in line.split("|"))


_TITLES: Final = _any_of(
    """
Mrs?|Ms|Mx|Miss|Dr|Prof|Professor|Herrn?|Frau|Monsieur|Madame|Mademoiselle|Mme|Mlle|M(?=\\.)
Sra?|Srta|Señor(?:a|ita)?|Doña|Sig(?:nora?)?|Dott|Dottor(?:essa)?|Senhora?|Dona|Pan[iu]?
г-н|г-жа|[Гг]осподин|[Гг]оспожа
"""
)
_SAYINGS: Final = _any_of(
    """
my (?:full )?name is|my name['’]s|the name is|i am called|mein name ist|ich hei(?:ß|ss)e
je m['’]appelle|mon nom est|me llamo|mi nombre es|mi chiamo|il mio nome è|meu nome é|me chamo
chamo-me|nazywam się|mam na imię|jag heter|ik heet|mijn naam is|меня зовут|моё имя
"""
)
_FIELDS: Final = _any_of(
    """
(?:(?:first|last|full|given|family|middle|customer|patient|client|contact|user|sur)[ _-]?)?name
vorname|nachname|prénom|nom(?: de famille)?|nombre(?: completo)?|apellidos?|nome(?: completo)?
cognome|sobrenome|имя|фамилия|фио|patient|attn|from|sender|recipient
"""
)
_GREETINGS: Final = _any_of(
    """
Dear|Hi|Hello|Hey|Lieber?|Hallo|Bonjour|Chère|Cher|Hola|Estimad[oa]|Querid[oa]|Car[oa]|Gentile
Ciao|Olá|Prezad[oa]|Beste|Hej|Уважаем(?:ый|ая)|Привет,?|Дорог(?:ой|ая)
"""
)
_CLOSINGS: Final = _any_of(
    """
(?:best |kind |warm |many )?(?:regards|wishes|thanks)|sincerely(?: yours)?|yours sincerely
yours faithfully|yours truly|cheers|mit freundlichen grüßen|viele grüße|liebe grüße
cordialement|bien à vous|(?:un )?saludos?(?: cordial(?:es)?)?|atentamente|cordiali saluti
atenciosamente|abraços?|с уважением
"""
)
_NO_NAME_AHEAD: Final = r"(?!(?:not|a|an|the|on|in|still|now|my|your)\b)"

_TITLE = Pattern(
    rf"(?<![^\W_])(?:{_TITLES})\.?[ \u00a0](?:(?:Dr|Prof)\.[ \u00a0]){{0,2}}(?P<name>{_NAME})"
)
_SAID = Pattern(
    rf"(?<![^\W_])(?i:{_SAYINGS})[ \u00a0]{{1,2}}(?P<name>{_NAME}"
    rf"|{_NO_NAME_AHEAD}[^\W\d_]{{2,20}}(?=[ \u00a0]?(?:[.,;!?\n]|\Z|and\b)))"
)
_FIELD = Pattern(
    rf"(?<![^\W_])(?i:{_FIELDS})[\"'*]{{0,3}}[ \u00a0]?[:=：][ \u00a0]?[\"'*]{{0,3}}[ \u00a0]?"
    rf"(?P<name>{_NAME})(?=[\"'*.,;<\n\r(|)\]}}]|[ \u00a0]?[<(|,]|[ \u00a0]*\Z)"
)
_GREETED = Pattern(
    rf"(?:\A|\n)[ \t>]{{0,4}}(?:{_GREETINGS})[ \u00a0](?P<name>{_NAME})(?=[ ]?[,!:\n])"
)
_SIGNED = Pattern(
    rf"\n[ \t>]{{0,4}}(?i:{_CLOSINGS}),?[ \t]{{0,4}}\r?\n[ \t>\r\n]{{0,6}}(?P<name>{_NAME})"
    r"(?=[ \t]{0,4}(?:\r?\n|\Z|,))"
)
_MAILED = Pattern(rf"(?<![^\W_])(?P<name>{_NAME})\"?[ \u00a0]<(?=[^\s<>@]{{1,64}}@)")

_SURNAMES: Final = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许邓韩冯曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁"
    "任卢姚沈钟姜崔谭陆范汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔向"
)
"""Chinese surnames that begin a name before a title: nothing else marks where it begins."""

_CHINESE: Final = (
    Pattern(rf"我(?:的名字(?:叫|是)|叫|名叫)[ ]?(?P<name>[{_HAN}]{{2,4}}?)(?=[^{_HAN}]|\Z)"),
    Pattern(rf"(?:姓名|名字|联系人|客户)[ ]?[:：是][ ]?(?P<name>[{_HAN}]{{2,4}}?)(?=[^{_HAN}]|\Z)"),
    Pattern(rf"(?P<name>[{_SURNAMES}][{_HAN}]{{0,2}}?)(?:先生|女士|小姐)"),
)
_JAPANESE: Final = (
    Pattern(
        rf"(?P<name>(?![客皆奥お])[{_HAN}]{{2,4}}|[{_KATAKANA}]{{2,12}})(?:さん|様|氏)(?![{_HAN}])"
    ),
    Pattern(
        rf"(?:氏名|名前)(?:[:：]|は)[ \u3000]?"
        rf"(?P<name>[{_HAN}]{{1,4}}[ \u3000]?[{_HAN}]{{1,4}}|[{_KATAKANA}\u3000 ・]{{2,20}})"
        rf"(?=です|と申|[^{_HAN}{_KATAKANA}]|\Z)"
    ),
)
_KOREAN: Final = (
    Pattern(rf"이름[은:：][ ]?(?P<name>[{_HANGUL}]{{2,4}}?)(?=입니다|이에요|[^{_HANGUL}]|\Z)"),
    Pattern(rf"(?<![{_HANGUL}])(?P<name>[{_HANGUL}]{{2,4}})[ ]?씨(?![{_HANGUL}]{{2}})"),
)
_CUES: Final = (_TITLE, _SAID, _FIELD, _GREETED, _SIGNED, _MAILED, *_CHINESE, *_JAPANESE, *_KOREAN)
_PROPER: Final = Pattern(_WORD)

_NO_NAMES: Final = frozenset(
    """
    sir madam all team world there everyone everybody customer support friends guys folks colleagues
    damen herren tous toutes monsieur madame equipo mundo todos amigos tutti mondo welt zusammen
    assistant user system claude gemini llama copilot siri alexa chatgpt none null unknown
    string number integer object name and or the this that true false test example
    """.split()  # noqa: SIM905 (a list of them would be much longer)
)
"""Words that stand where a name would."""


def names(text: str) -> Iterator[Found]:
    """Yield the names of people in `text`."""
    for cue in _CUES:
        for at in cue.finditer(text):
            name = at["name"]
            if name.split()[0].casefold() not in _NO_NAMES:
                start = at.start("name")
                yield Found(start, start + len(name), PERSON, person(name))


def person(name: str) -> str:
    """Return the key of a person: the same for all spellings of a name."""
    return " ".join(name.split()).casefold()


def is_proper(word: str) -> bool:
    """Return whether `word` looks like a name or a part of one."""
    is_common = word.casefold() in _NO_NAMES
    return len(word) > 2 and not is_common and _PROPER.fullmatch(word) is not None
