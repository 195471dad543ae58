"""Finds the web addresses in a text as people and models write them."""

import re
from collections.abc import Iterator
from typing import Final

from optillm_hooks.web.download import MAX_URL

_BEGINS: Final = re.compile(r"https?://", re.IGNORECASE)
_ENDS: Final = re.compile(
    r"[\s<>\"`{}|\\^\x00-\x20\x7f\u00a0\u00ab\u00bb\u200b\u2013-\u201f\u2026\u2028\u2029\u2039\u203a"
    r"\u3000-\u3004\u3008-\u301f\u30fb\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff3b\uff3d\uff5b"
    r"\uff5d\ufeff]"
)
"""What no address contains: blanks, quotes, and punctuation of scripts other than the Latin one."""

_WITHOUT_BLANKS: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of scripts that write words, or their endings, without a blank before them."""

_GOES_ON: Final = re.compile(rf"(?<=[A-Za-z0-9])[{_WITHOUT_BLANKS}]")
"""Where a sentence goes on after an address. A host or a part of a path may be in such a script,
but hardly one that begins with Latin letters."""

_CLOSING: Final = {")": "(", "]": "["}
_TRAILING: Final = ".,;:!?'*~\u00b7\u061f\u060c\u06d4\u0964"


def find_urls(text: str, limit: int) -> list[str]:
    """Return the first `limit` web addresses in `text`, each page once, in their order.

    Punctuation after an address, the brackets and marks around it, and its fragment are no part of
    it. It takes time in proportion to the text, and a large text takes milliseconds.
    """
    found: dict[str, str] = {}
    for url in _urls(text):
        found.setdefault(page_key(url), url)
        if len(found) == limit:
            break
    return list(found.values())


def page_key(url: str) -> str:
    """Return what is equal for two addresses of the same page.

    Scheme, case of the host, `www.`, fragment and a slash at the end make no difference.
    """
    rest = url.partition("#")[0].partition("://")[2]
    host, slash, path = rest.partition("/")
    return f"{host.lower().removeprefix('www.')}{slash}{path}".rstrip("/")


def _urls(text: str) -> Iterator[str]:
    at = 0
    while begin := _BEGINS.search(text, at):
        window = text[begin.start() : begin.end() + MAX_URL + 1]
        end = len(begin[0])
        found = _ENDS.search(window, end)
        rest = window[end : found.start() if found else len(window)]
        rest = _up_to_next_word(_up_to_closing(rest)).partition("#")[0]
        rest = _without_trailing(rest, text[begin.start() - 1 : begin.start()])
        at = begin.end() + len(rest)
        if rest.strip("/"):
            yield begin[0].lower() + rest


def _up_to_closing(rest: str) -> str:
    """Return `rest` up to a bracket that closes one before the address: of a link in Markdown."""
    opened: list[str] = []
    for at, character in enumerate(rest):
        if character in "([":
            opened.append(character)
        elif character in _CLOSING and (not opened or opened.pop() != _CLOSING[character]):
            return rest[:at]
    return rest


def _up_to_next_word(rest: str) -> str:
    """Return `rest` without the words that follow it without a blank."""
    found = _GOES_ON.search(rest)
    return rest[: found.start()] if found else rest


def _without_trailing(rest: str, before: str) -> str:
    marks = _TRAILING + ("_" if before == "_" else "")
    return rest.rstrip(marks)
