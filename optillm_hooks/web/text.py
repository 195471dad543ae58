"""The worker that reads a page's text: pages are hostile, and parsers are large.

It is called through `sandbox.ask_worker`. Request: `body` in base64, `kind`, `charset`. Reply:
`title`, `text` and `truncated`.
"""

import codecs
import io
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any, Final

from optillm_hooks.types import Json

MAX_TEXT: Final = 400_000
"""Maximum characters of a page's text."""

_MAX_TITLE: Final = 300
_MAX_PAGES: Final = 300
"""Maximum pages of a PDF file."""

_TOLD: Final = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s{0,9}=\s{0,9}
    ["']?\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE | re.VERBOSE)  # fmt: skip
_WIDER: Final = {
    "ascii": "cp1252",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-1": "cp1252",
    "shift_jis": "cp932",
}
"""What browsers read in place of a charset: one that contains it, which many pages really have."""

_SAMPLE: Final = "<html><body><main><h1>Title</h1><p>A text.</p></main></body></html>"
_ESCAPED: Final = re.compile(r"\\([][*_`~<])|(`[^`\n]{1,400}`|```[^`]{1,9999}```)")
"""What trafilatura writes for a character that Markdown gives a meaning; and code, which it leaves
as it is."""


def load() -> None:
    """Import the parsers, so that no worker has to."""
    import pypdf  # noqa: F401
    import trafilatura

    trafilatura.extract(_SAMPLE, output_format="markdown")


def answer(request: Mapping[str, Any]) -> Json:
    """Return the text of a page."""
    body: bytes = b64decode(request["body"])
    if request["kind"] == "pdf":
        title, text, truncated = _pdf(body)
    else:
        text, title, truncated = _decoded(body, request["charset"]), "", False
        if request["kind"] == "html":
            title, text = _html(text)
    text = _sendable(text).strip()
    return {
        "title": _sendable(" ".join(title[: 2 * _MAX_TITLE].split())[:_MAX_TITLE]),
        "text": text[:MAX_TEXT],
        "truncated": truncated or len(text) > MAX_TEXT,
    }


def _sendable(text: str) -> str:
    """Return `text` without what no request can carry: halves of characters, and NUL.

    Some charsets and PDF files yield halves.
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _html(text: str) -> tuple[str, str]:
    """Return the title and the main text as Markdown; all text of a page without a main one."""
    import trafilatura
    from lxml import etree, html

    if not text.strip():
        return "", ""
    # As bytes: lxml refuses a text that declares an encoding, as XHTML does.
    content, parser = text.encode("utf-8", "replace"), html.HTMLParser(encoding="utf-8")
    tree = html.document_fromstring(content, parser=parser)
    title = tree.findtext(".//title") or ""
    found = trafilatura.extract(
        text, output_format="markdown", include_comments=False, favor_recall=True
    )
    if found:
        return title, _ESCAPED.sub(lambda each: each[1] or each[2], found)
    etree.strip_elements(tree, "head", "script", "style", "noscript", "template", with_tail=False)
    return title, "\n".join(filter(None, map(str.strip, tree.itertext())))


def _pdf(body: bytes) -> tuple[str, str, bool]:
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(body))
    pages = list(_texts(reader))
    title = reader.metadata.title if reader.metadata else None
    return title or "", "\n\n".join(pages), len(pages) < len(reader.pages)


def _texts(reader: Any) -> Iterator[str]:
    """Yield the text of each page, until there is more than enough."""
    size = 0
    for page in reader.pages[:_MAX_PAGES]:
        if size > MAX_TEXT:
            return
        text = page.extract_text()
        size += len(text)
        yield text


def _decoded(body: bytes, charset: str) -> str:
    """Return `body` as text, by its own charset, the header's, or the one it looks like."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    found = _TOLD.search(body[:2048])
    for name in (charset, found[1].decode() if found else ""):
        if (text := _as(body, name)) is not None:
            return text
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body)  # its end may be cut
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        best = from_bytes(body[: 1 << 16]).best()
        return body.decode(best.encoding if best else "cp1252", "replace")


def _as(body: bytes, charset: str) -> str | None:
    """Return `body` in a charset, or None if there is none of that name."""
    try:
        name = codecs.lookup(charset.strip()).name
        return body.decode(_WIDER.get(name, name), "replace")
    except (LookupError, ValueError):
        return None
