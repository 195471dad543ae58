"""Pseudonyms as they stand in a text: `PERSON_XKCDQZ`, or `PERSON_XKCDQZ_2` for another spelling.

A model may change a pseudonym: its case, the sign in its middle, its label. The code alone says
what it stands for.
"""

from collections.abc import Mapping
from typing import Final

from optillm_hooks.answers.patterns import Pattern

ALPHABET: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""Letters of codes. Without vowels, hardly any word is a code."""

CODE_LENGTH: Final = 6

NUMBER_LENGTH: Final = 4
"""Maximum digits of the number of a spelling."""

_TRANSLATED: Final[Mapping[str, str]] = {
    "PERSON": "persona personne pessoa persoon osoba henkilö человек"
    " персона лицо 人物 人名 人 사람 شخص",
    "EMAIL": "e-mail mail courriel correo correio почта 邮箱 邮件"
    " メール 이메일",
    "PHONE": "telefon téléphone teléfono telefono telefone телефон"
    " 电话 電話 전화",
    "CARD": "karte carte tarjeta carta cartão карта 卡 カード 카드",
    "KEY": "schlüssel clé clave chiave chave ключ 密钥 キー 키",
    "USER": "benutzer nutzer utilisateur usuario utente usuário пользователь"
    " 用户 ユーザー 사용자",
    "CUSTOM": "private",
    "LOCATION": "ort lieu lugar luogo local место 地点 場所 위치",
    "ORGANIZATION": "organisation organización organizzazione organização"
    " организация 组织 組織 조직",
}  # fmt: skip
"""Labels as models translate them."""


def labels(entity: str) -> list[str]:
    """Return the words by which a model may call an entity, in small letters."""
    return [entity.lower(), *_TRANSLATED.get(entity, "").split()]


CODE: Final = Pattern(
    rf"(?<![A-Za-z0-9])[{ALPHABET}{ALPHABET.lower()}]{{{CODE_LENGTH}}}(?![A-Za-z])"
)
"""A word that could be a code."""
